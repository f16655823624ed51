//! Owns what the kernel says of our own process.
//!
//! Never: fails a scrape: what cannot be read is left out.

use super::families as f;
use super::text::Scrape;

/// Adds what is known of the process.
pub(super) fn scrape(out: &mut Scrape) {
    if let Some(stat) = Stat::read() {
        out.one(&f::RESIDENT, stat.resident_pages * rustix::param::page_size() as u64);
        out.one(&f::CPU, stat.cpu_ticks as f64 / ticks_per_second());
        out.one(&f::THREADS, stat.threads);
        if let Some(boot_s) = boot_s() {
            out.one(&f::STARTED, boot_s + stat.start_ticks as f64 / ticks_per_second());
        }
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        // One of them is this look.
        out.one(&f::FDS, fds.count().saturating_sub(1));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.into_iter().for_each(|max| out.one(&f::FDS_MAX, max));
}

/// What is used of `/proc/self/stat`, proc(5).
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        Stat::parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name of the program, in parentheses, may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // The first field after the name is the third of the manual page.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second().max(1) as f64
}

/// When the machine began, in unix seconds.
fn boot_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 99 0 0 0 12 34 0 0 20 0 5 0 678 4096 321 18446744073709551615";
        let stat = Stat::parse(line).expect("parses");
        assert_eq!((stat.cpu_ticks, stat.threads), (46, 5));
        assert_eq!((stat.start_ticks, stat.resident_pages), (678, 321));
    }
}
