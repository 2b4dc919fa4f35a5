//! What a delivery costs the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::measure::{self, Child, count, median, size, spread, table};
use super::{peers, plot};

/// Nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
struct Load {
    followers: usize,
    size: usize,
    messages: usize,
    /// Messages a second; `None`: as fast as the server takes them.
    rate: Option<u32>,
}

impl Load {
    fn full(followers: usize, size: usize, messages: usize) -> Self {
        Self { followers, size, messages, rate: None }
    }

    fn rate(self) -> String {
        self.rate.map_or("full".to_owned(), |rate| count(rate as usize))
    }

    fn deliveries(self) -> f64 {
        (self.followers * self.messages) as f64
    }
}

/// CPU seconds of the server for each million deliveries.
struct Cost {
    floor: Vec<f64>,
    /// That writes to a file as well: only where there is one follower, as the file is what costs then.
    storing: Vec<f64>,
    layer: Vec<f64>,
    /// How busy the server and the followers' side were with the layer, at most.
    busy: (f64, f64),
}

/// What one run takes.
struct Used {
    server: f64,
    followers: f64,
    wall: f64,
}

/// What the floor took where peers were measured (shared/peers.md), in CPU s per million and for 64 KiB per GB.
fn known_floor(load: Load) -> Option<f64> {
    let known = match (load.size, load.followers, load.rate) {
        (64, 1, None) => 0.10,
        (64, 100, None) => 0.02,
        (64, 1000, None) => 0.04,
        (1024, 1, None) => 0.60,
        (1024, 100, None) => 0.25,
        (1024, 1000, None) => 0.31,
        (65_536, 1, None) => 0.62 * 65.536,
        (65_536, 100, None) => 0.26 * 65.536,
        (65_536, 1000, None) => 0.31 * 65.536,
        _ => return None,
    };
    Some(known)
}

impl Cost {
    fn row(&self, load: Load) -> Vec<String> {
        let per_gb = |million: &[f64]| format!("{:.2}", median(million) * 1e3 / load.size as f64);
        vec![
            size(load.size),
            count(load.followers),
            load.rate(),
            spread(&self.layer, 3),
            spread(&self.floor, 3),
            per_gb(&self.layer),
            per_gb(&self.floor),
            measure::to_floor(&self.layer, &self.floor, known_floor(load)),
            // Readers that have nothing left to give may be what is measured.
            format!(
                "{:.0}, {:.0} %{}",
                self.busy.0 * 100.0,
                self.busy.1 * 100.0,
                if self.busy.0 < 0.95 && self.busy.1 >= 0.95 { " (readers)" } else { "" }
            ),
        ]
    }
}

const HEAD: [&str; 9] = [
    "Message",
    "Followers",
    "Messages/s",
    "CPU s per million",
    "floor",
    "CPU s per GB",
    "floor",
    "to the floor",
    "server, readers busy",
];

pub async fn fanout(smoke: bool) {
    let paced = |followers, size, rate, messages| Load { followers, size, messages, rate: Some(rate) };
    let loads: &[Load] = &if let Some(load) = one_load() {
        vec![load]
    } else if smoke {
        vec![
            paced(20, 64, 1000, 300),
            Load::full(1, 1024, 2000),
            Load::full(20, 1024, 2000),
            Load::full(100, 64 * 1024, 20),
        ]
    } else {
        vec![
            Load::full(1, 64, 3_000_000),
            Load::full(100, 64, 200_000),
            Load::full(1000, 64, 50_000),
            Load::full(1, 1024, 400_000),
            Load::full(100, 1024, 80_000),
            Load::full(1000, 1024, 8_000),
            Load::full(1, 64 * 1024, 8_000),
            Load::full(100, 64 * 1024, 600),
            Load::full(1000, 64 * 1024, 60),
            paced(1, 64, 2000, 6000),
            paced(100, 64, 2000, 6000),
            paced(100, 1024, 2000, 6000),
            paced(100, 64 * 1024, 50, 150),
        ]
    };
    let (mut rows, mut alone) = (Vec::new(), Vec::new());
    for &load in loads {
        let alone_at_full_speed = load.followers == 1 && load.rate.is_none();
        let cost = cost(load, if smoke { 1 } else { 3 }, alone_at_full_speed).await;
        rows.push(cost.row(load));
        if !cost.storing.is_empty() {
            let ratio = format!("{:.2}×", median(&cost.layer) / median(&cost.storing));
            let costs = [&cost.layer, &cost.storing, &cost.floor].map(|runs| spread(runs, 3));
            alone.push([&[size(load.size)], &costs[..], &[ratio]].concat());
        }
    }
    table("Fan-out: the server's CPU time; median of three runs in turn (least–most)", &HEAD, &rows);
    if !alone.is_empty() {
        table(
            "To one follower as fast as it goes, beside a floor that writes to a file first: CPU s per million, the same runs",
            &["Message", "this crate", "floor that stores", "floor", "to the one that stores"],
            &alone,
        );
    }
}

/// `--load FOLLOWERS,BYTES,MESSAGES[,RATE]`: this one only, to be looked at with a profiler.
fn one_load() -> Option<Load> {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == "--load")?;
    let numbers: Vec<usize> = args[at + 1].split(',').map(|number| number.parse().unwrap()).collect();
    let rate = numbers.get(3).map(|rate| *rate as u32);
    Some(Load { followers: numbers[0], size: numbers[1], messages: numbers[2], rate })
}

/// How cost grows: what is in the docs.
pub async fn grow(smoke: bool) {
    const SIZES: [usize; 6] = [64, 256, 1024, 4096, 16 * 1024, 64 * 1024];
    let (followers, sizes, rates): (&[usize], &[usize], &[u32]) = if smoke {
        (&[1, 10], &[64, 1024], &[500, 1000])
    } else {
        (&[1, 3, 10, 30, 100, 300, 1000], &SIZES, &[100, 300, 1000, 3000, 10_000, 30_000])
    };
    // About as many bytes in each run.
    let messages = |followers: usize, size: usize| {
        let bytes = if smoke { 1 << 20 } else { 1 << 30 };
        (bytes / followers.clamp(10, 1000) / size.max(512)).clamp(20, 400_000)
    };
    let many = |followers: usize| if smoke { followers.min(10) } else { followers };
    let by_followers = followers.iter().map(|&n| (n as f64, Load::full(n, 1024, messages(n, 1024))));
    let by_size = sizes.iter().map(|&size| (size as f64, Load::full(many(100), size, messages(100, size))));
    let by_rate = rates.iter().map(|&rate| {
        let messages = if smoke { 100 } else { rate as usize * 2 };
        (f64::from(rate), Load { followers: many(100), size: 64, messages, rate: Some(rate) })
    });
    let panels = [
        ("1 KiB as fast as it goes, by followers", by_followers.collect::<Vec<_>>()),
        ("100 followers as fast as it goes, by message size in bytes", by_size.collect()),
        ("100 followers, 64 B, by messages a second", by_rate.collect()),
    ];
    let (mut drawn, mut rows) = (Vec::new(), Vec::new());
    for (title, loads) in panels {
        let mut panel = plot::Panel { title, ours: Vec::new(), floor: Vec::new() };
        for (x, load) in loads {
            let cost = cost(load, if smoke { 1 } else { 3 }, false).await;
            panel.ours.push((x, median(&cost.layer)));
            panel.floor.push((x, median(&cost.floor)));
            rows.push(cost.row(load));
        }
        drawn.push(panel);
    }
    let rows = table("How cost grows: the server's CPU time; median of three runs in turn (least–most)", &HEAD, &rows);
    let svg = plot::draw(&drawn);
    if !smoke {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs");
        std::fs::write(docs.join("cost.svg"), svg).unwrap();
        std::fs::write(docs.join("cost_table.md"), rows).unwrap();
    }
}

async fn cost(load: Load, rounds: usize, storing: bool) -> Cost {
    let mut cost = Cost { floor: Vec::new(), storing: Vec::new(), layer: Vec::new(), busy: (0.0, 0.0) };
    let each = |used: &Used| used.server / load.deliveries() * 1e6;
    let data: Arc<[u8]> = measure::text(load.size * load.messages).into();
    for _ in 0..rounds {
        cost.floor.push(each(&one_run(&Child::floor(load.followers, load.size), load, &data).await));
        if storing {
            cost.storing.push(each(&one_run(&Child::storing_floor(1, load.size), load, &data).await));
        }
        let used = one_run(&Child::layer(), load, &data).await;
        cost.layer.push(each(&used));
        let (server, followers) = (used.server / used.wall, used.followers / used.wall);
        cost.busy = (cost.busy.0.max(server), cost.busy.1.max(followers));
    }
    eprintln!(
        "{} × {}, {}/s: {}",
        load.followers,
        size(load.size),
        load.rate(),
        measure::to_floor(&cost.layer, &cost.floor, None)
    );
    cost
}

async fn one_run(child: &Child, load: Load, data: &Arc<[u8]>) -> Used {
    let mut appender = peers::Appender::open(child.addr, "/log.txt").await;
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..load.followers {
        let follower = peers::Follower::open(child.addr, "/log.txt").await;
        followers.spawn(follower.whole(Arc::clone(data)));
    }
    let (before, own, start) = (child.cpu(), measure::own_cpu(), Instant::now());
    let appending = tokio::spawn({
        let data = Arc::clone(data);
        async move { appender.send_all(&data, load.size, load.rate).await }
    });
    let all = async {
        appending.await.unwrap();
        while let Some(done) = followers.join_next().await {
            done.expect("each follower gets every byte and the end");
        }
    };
    tokio::time::timeout(LIMIT, all).await.expect("the end within the limit");
    let wall = start.elapsed().as_secs_f64();
    Used { server: child.cpu() - before, followers: measure::own_cpu() - own, wall }
}
