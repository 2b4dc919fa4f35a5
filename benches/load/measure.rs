//! The server's process: how it is started, and what it uses, as the kernel counts it. Tables of what comes out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A server in a process of its own, on core 0. Dropping it kills it.
pub struct Child {
    process: std::process::Child,
    pub addr: SocketAddr,
    /// Of each thread, also of those that have ended.
    used: RefCell<HashMap<OsString, u64>>,
    /// Goes with it.
    root: Option<tempfile::TempDir>,
}

impl Child {
    /// The layer over an empty folder.
    pub fn layer() -> Self {
        Self::storing(&["layer", "0"])
    }

    /// The layer over a folder that outlives it, at a port of its own (0: any).
    pub fn layer_at(root: &Path, port: u16) -> Self {
        Self::start(&["layer", &port.to_string(), root.to_str().unwrap()])
    }

    /// The floor, for so many followers and messages of this size.
    pub fn floor(followers: usize, size: usize) -> Self {
        Self::start(&["floor", &followers.to_string(), &size.to_string()])
    }

    /// The same, but it writes what has come to a file first.
    pub fn storing_floor(followers: usize, size: usize) -> Self {
        Self::storing(&["floor", &followers.to_string(), &size.to_string()])
    }

    /// A server over an empty folder, which it is given last.
    pub fn storing(role: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut child = Self::start(&[role, &[root.path().to_str().unwrap()]].concat());
        child.root = Some(root);
        child
    }

    pub fn start(role: &[&str]) -> Self {
        let exe = std::env::current_exe().unwrap();
        let mut command = if has_two_cores() { Command::new("taskset") } else { Command::new(&exe) };
        if has_two_cores() {
            command.args(["-c", "0"]).arg(&exe);
        }
        let mut process = command
            .arg("--serve")
            .args(role)
            // The server ends when this pipe does, however we end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self {
            process,
            addr: line.trim().parse().expect("the server says where it listens"),
            used: RefCell::default(),
            root: None,
        }
    }

    /// CPU seconds of all its threads so far.
    pub fn cpu(&self) -> f64 {
        let mut used = self.used.borrow_mut();
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap() {
            let thread = thread.unwrap();
            let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            if let Some(ns) = stat.split(' ').next().and_then(|ns| ns.parse().ok()) {
                used.insert(thread.file_name(), ns);
            }
        }
        used.values().sum::<u64>() as f64 / 1e9
    }

    /// Resident memory in KiB, once it no longer changes.
    pub async fn settled_rss(&self) -> f64 {
        let mut last = self.rss();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = self.rss();
            if now == last {
                break;
            }
            last = now;
        }
        last
    }

    pub fn rss(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn has_two_cores() -> bool {
    let works = |core| Command::new("taskset").args(["-c", core, "true"]).status().is_ok_and(|status| status.success());
    works("0") && works("1")
}

/// For as many sockets as the system allows, here and in the server, which inherits it.
pub fn raise_file_limit() {
    let raise = format!("prlimit --pid {} --nofile=$(ulimit -Hn):", std::process::id());
    let raised = Command::new("sh").args(["-c", &raise]).status();
    assert!(raised.is_ok_and(|status| status.success()), "prlimit (util-linux) raises the limit of open files");
}

pub fn stay_on_core_1() {
    if has_two_cores() {
        let pid = std::process::id().to_string();
        let pinned = Command::new("taskset").args(["-cp", "1", &pid]).stdout(Stdio::null()).status();
        assert!(pinned.is_ok_and(|status| status.success()), "taskset (util-linux) pins this process");
    }
}

/// Text that differs at every place, as logs do: any gap, repetition or swap shows.
pub fn text(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 10);
    let mut at = 0u64;
    while out.len() < len {
        // splitmix64
        at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = at;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        out.extend((0..10).map(|i| b' ' + 1 + ((word >> (6 * i)) & 63) as u8));
    }
    out.truncate(len);
    out
}

/// CPU seconds of this process so far, which has one thread.
pub fn own_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<u64>().unwrap() as f64 / 1e9
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// `median (least–most)`.
pub fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({least:.digits$}–{most:.digits$})", median(values))
}

/// How ours is to the floor's. A floor of more than one and a half of what it was where peers were measured
/// (shared/peers.md) makes the ratio void.
pub fn to_floor(ours: &[f64], floor: &[f64], known: Option<f64>) -> String {
    let void = known.is_some_and(|known| median(floor) > 1.5 * known);
    format!("{:.2}×{}", median(ours) / median(floor), if void { " (void)" } else { "" })
}

/// So many, with commas.
pub fn count(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

/// A message's size as people write it.
pub fn size(bytes: usize) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes / 1024) }
}

/// Prints a table in Markdown.
pub fn table(title: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let line = |cells: &[&str]| {
        let cells: Vec<_> = cells.iter().enumerate().map(|(i, cell)| format!(" {cell:<w$} ", w = width(i))).collect();
        format!("|{}|\n", cells.join("|"))
    };
    let mut out = line(head);
    out += &format!("|{}|\n", head.iter().map(|_| "---").collect::<Vec<_>>().join("|"));
    for row in rows {
        out += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    println!("\n{title}\n\n{out}");
    out
}
