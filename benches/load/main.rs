//! The server under load, over real sockets, beside the least that could do the same; every reader's bytes are compared
//! whole, and the program fails if one is missing.
//!
//! `cargo bench --features client --bench load` runs everything; `-- fanout latency` only these parts:
//!
//! | Part | What it shows |
//! |---|---|
//! | `fanout` | what a delivery costs the server, for 1, 100 and 1,000 followers, beside the floor |
//! | `latency` | from an append to its arrival, beside the floor |
//! | `ways` | the same by WebSocket, by plain body and as server-sent events |
//! | `idle` | what a follower that waits costs in memory and CPU time |
//! | `crowd` | 10,000 followers on one resource, and a restart under them |
//! | `pairs` | 2,000 resources with an appender and a follower each, beside a relay without storage, and one that stores |
//! | `files` | a finished file to 100 readers, beside `ServeFile`; a live one to 100 that catch up |
//! | `joiners` | 200 that join while 2,000 messages a second come |
//! | `stalled` | what one follower that reads nothing does to 100 others and the appender, in ten runs with and without |
//! | `memory` | the server's memory while 10 GB are appended |
//! | `grow` | how cost grows with followers, sizes and rates: a table, and `src/docs/cost.svg` |
//!
//! `-- fanout --load FOLLOWERS,BYTES,MESSAGES[,RATE]` is one load, for a profiler.
//!
//! The floor is a server that writes prepared frames to the same sockets, one write for each follower and batch, and stores
//! nothing. Each server is a process of its own on core 0, and this program is on core 1, so that the server's CPU time is
//! its alone. `--smoke` (or any run that isn't `cargo bench`) is a moment of each part, for CI.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod crowd;
mod fanout;
mod files;
mod idle;
mod latency;
mod measure;
mod pairs;
mod peers;
mod plot;
mod server;
mod stalled;

use std::time::Duration;

/// Nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(1800);
const PARTS: [&str; 11] =
    ["fanout", "latency", "ways", "idle", "crowd", "pairs", "files", "joiners", "stalled", "memory", "grow"];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(role) = args.iter().position(|arg| arg == "--serve") {
        return server::run(&args[role + 1..]);
    }
    let smoke = args.iter().any(|arg| arg == "--smoke") || !args.iter().any(|arg| arg == "--bench");
    let named: Vec<&str> = PARTS.into_iter().filter(|part| args.iter().any(|arg| arg == part)).collect();
    let parts = if named.is_empty() { PARTS.to_vec() } else { named };
    measure::raise_file_limit();
    measure::stay_on_core_1();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for part in parts {
            let run = async {
                match part {
                    "fanout" => fanout::fanout(smoke).await,
                    "latency" => latency::latency(smoke).await,
                    "ways" => latency::ways(smoke).await,
                    "idle" => idle::idle(smoke).await,
                    "crowd" => crowd::crowd(smoke).await,
                    "pairs" => pairs::pairs(smoke).await,
                    "files" => files::files(smoke).await,
                    "joiners" => files::joiners(smoke).await,
                    "stalled" => stalled::stalled(smoke).await,
                    "memory" => files::memory(smoke).await,
                    _ => fanout::grow(smoke).await,
                }
            };
            tokio::time::timeout(LIMIT, run).await.expect("a part comes to its end");
        }
    });
}
