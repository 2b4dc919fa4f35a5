//! The server's process: how it is started, and what it uses, as the kernel counts it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A server in a process of its own. Dropping it ends it.
pub struct Child {
    process: std::process::Child,
    pub addr: SocketAddr,
}

impl Child {
    pub fn start(role: &str, size: usize) -> Self {
        let exe = std::env::current_exe().unwrap();
        let pinned = Command::new("taskset").args(["-c", "0", "true"]).status().is_ok_and(|status| status.success());
        let mut command = if pinned { Command::new("taskset") } else { Command::new(&exe) };
        if pinned {
            command.args(["-c", "0"]).arg(&exe);
        }
        let mut process = command
            .args(["--serve", role, &size.to_string()])
            // The server ends when this pipe does, however we end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, addr: line.trim().parse().expect("the server says where it listens") }
    }

    /// CPU seconds of all its threads so far (none of them ends before the process does).
    pub fn cpu(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let ns: u64 = threads
            .map(|thread| {
                let stat = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
                stat.split(' ').next().unwrap().parse::<u64>().unwrap()
            })
            .sum();
        ns as f64 / 1e9
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

    fn rss(&self) -> f64 {
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

/// For as many sockets as there are followers, here and in the server, which inherits it.
pub fn raise_file_limit() {
    let pid = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &pid, "--nofile=4096:4096"]).status();
    assert!(raised.is_ok_and(|status| status.success()), "prlimit (util-linux) raises the limit of open files");
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
