//! Owns the choice of a host for a new sandbox.
//!
//! Never: reserves anything; the writer calls it in the transaction that inserts the row.

/// A host that could take a sandbox, and what its sandboxes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Processor cores; `None` when the host never said.
    pub cpu_cores: Option<u32>,
    /// Memory in MiB; `None` when the host never said.
    pub memory_mb: Option<u64>,
    /// Virtual processors of the sandboxes that hold a microVM.
    pub used_vcpus: u64,
    /// Their memory in MiB.
    pub used_memory_mb: u64,
}

/// What a new sandbox needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
}

/// Why no host was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHost {
    /// No host takes new sandboxes right now.
    NoneAvailable,
    /// Every host that does is smaller than the sandbox.
    TooBig,
    /// Every host that could take it is full.
    AllFull,
}

/// What is left on a host that has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Memory in MiB; `None` when the host never said how much it has.
    pub memory_mb: Option<u64>,
    /// Virtual processors; `None` as above.
    pub vcpus: Option<u64>,
}

/// How much of a host may be promised to sandboxes that run, in percent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// Of its memory.
    pub memory_percent: u32,
    /// Of its processor cores; sandboxes are mostly idle.
    pub cpu_percent: u32,
}

/// Position of the least loaded candidate, by the scarcer of memory and processors after
/// the sandbox is on it; the first of equals.
pub fn place(
    candidates: &[Candidate],
    need: Need,
    overcommit: Overcommit,
) -> Result<usize, NoHost> {
    if candidates.is_empty() {
        return Err(NoHost::NoneAvailable);
    }
    let large: Vec<usize> =
        (0..candidates.len()).filter(|&at| fits(&candidates[at], need)).collect();
    if large.is_empty() {
        return Err(NoHost::TooBig);
    }
    let load = |at: usize| load_after(&candidates[at], need, overcommit);
    let free = large.into_iter().filter(|&at| load(at) <= FULL);
    free.min_by_key(|&at| load(at)).ok_or(NoHost::AllFull)
}

/// Whether a sandbox that is on this host already may start to run there.
///
/// # Errors
/// What is free, when that is too little.
pub fn has_room(host: &Candidate, need: Need, overcommit: Overcommit) -> Result<(), Free> {
    match load_after(host, need, overcommit) <= FULL {
        true => Ok(()),
        false => Err(free(host, overcommit)),
    }
}

/// Load of a host with nothing left, in millionths.
const FULL: u64 = 1_000_000;

fn fits(host: &Candidate, need: Need) -> bool {
    host.memory_mb.is_none_or(|memory| need.memory_mb <= memory)
        && host.cpu_cores.is_none_or(|cores| need.vcpus <= cores)
}

/// What may be promised of a host: memory in MiB and virtual processors.
fn promised(host: &Candidate, overcommit: Overcommit) -> (Option<u64>, Option<u64>) {
    let percent = |of: u64, percent: u32| of.saturating_mul(u64::from(percent)) / 100;
    let memory = host.memory_mb.map(|of| percent(of, overcommit.memory_percent));
    let vcpus = host.cpu_cores.map(|of| percent(u64::from(of), overcommit.cpu_percent));
    (memory, vcpus)
}

fn free(host: &Candidate, overcommit: Overcommit) -> Free {
    let (memory, vcpus) = promised(host, overcommit);
    Free {
        memory_mb: memory.map(|of| of.saturating_sub(host.used_memory_mb)),
        vcpus: vcpus.map(|of| of.saturating_sub(host.used_vcpus)),
    }
}

/// The scarcer of the two, in millionths. What a host never said is not scarce.
fn load_after(host: &Candidate, need: Need, overcommit: Overcommit) -> u64 {
    let part = |used: u64, of: u64| used.saturating_mul(FULL).div_ceil(of.max(1));
    let (memory, vcpus) = promised(host, overcommit);
    let memory = memory.map(|of| part(host.used_memory_mb + need.memory_mb, of));
    let vcpus = vcpus.map(|of| part(host.used_vcpus + u64::from(need.vcpus), of));
    memory.into_iter().chain(vcpus).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: u32, memory_mb: u64, used_vcpus: u64, used_memory_mb: u64) -> Candidate {
        Candidate { cpu_cores: Some(cores), memory_mb: Some(memory_mb), used_vcpus, used_memory_mb }
    }

    const SMALL: Need = Need { vcpus: 1, memory_mb: 512 };

    const USUAL: Overcommit = Overcommit { memory_percent: 100, cpu_percent: 800 };

    fn place(candidates: &[Candidate], need: Need) -> Result<usize, NoHost> {
        super::place(candidates, need, USUAL)
    }

    #[test]
    fn the_scarcer_resource_decides() {
        let by_memory = [host(8, 8192, 1, 6000), host(8, 8192, 30, 1000)];
        assert_eq!(place(&by_memory, SMALL), Ok(1));
        let by_vcpus = [host(8, 8192, 60, 1000), host(8, 8192, 1, 4000)];
        assert_eq!(place(&by_vcpus, SMALL), Ok(1));
        assert_eq!(place(&[host(8, 8192, 0, 0); 3], SMALL), Ok(0), "the first of equals");
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        assert_eq!(place(&[], SMALL), Err(NoHost::NoneAvailable));
        let big = Need { vcpus: 16, memory_mb: 512 };
        assert_eq!(place(&[host(8, 8192, 0, 0)], big), Err(NoHost::TooBig));
        assert_eq!(place(&[host(8, 8192, 0, 8000)], SMALL), Err(NoHost::AllFull));
        let exactly = [host(8, 8192, 0, 8192 - 512)];
        assert_eq!(place(&exactly, SMALL), Ok(0));
    }

    #[test]
    fn a_host_that_never_said_its_size_takes_anything() {
        let silent =
            Candidate { cpu_cores: None, memory_mb: None, used_vcpus: 9, used_memory_mb: 9 };
        assert_eq!(place(&[silent], Need { vcpus: 999, memory_mb: 1 << 40 }), Ok(0));
    }

    #[test]
    fn what_starts_to_run_needs_room_or_learns_what_is_free() {
        let tight = host(2, 2048, 15, 2048 - 511);
        let free = Free { memory_mb: Some(511), vcpus: Some(1) };
        assert_eq!(has_room(&tight, SMALL, USUAL), Err(free));
        let twice = Overcommit { memory_percent: 200, ..USUAL };
        assert_eq!(has_room(&tight, SMALL, twice), Ok(()));
        let busy = host(2, 2048, 16, 0);
        let free = Free { memory_mb: Some(2048), vcpus: Some(0) };
        assert_eq!(has_room(&busy, SMALL, USUAL), Err(free));
        let silent =
            Candidate { cpu_cores: None, memory_mb: None, used_vcpus: 9, used_memory_mb: 9 };
        assert_eq!(has_room(&silent, SMALL, USUAL), Ok(()));
    }

    /// A host that is a thousandth over is over: room is counted, not rounded.
    #[test]
    fn overcommit_is_exact() {
        for memory_mb in [1, 511, 512, 2047, 2048, 1 << 30] {
            for used in [0, 1, 512, 1535, 1536, 1537] {
                for percent in [50, 100, 150, 800] {
                    let overcommit = Overcommit { memory_percent: percent, cpu_percent: 800 };
                    let host = host(64, memory_mb, 0, used);
                    let fits = (used + 512) * 100 <= memory_mb * u64::from(percent);
                    let room = has_room(&host, SMALL, overcommit);
                    // A promise is whole MiB.
                    let exact = fits == room.is_ok() || memory_mb * u64::from(percent) % 100 != 0;
                    assert!(exact, "{memory_mb} {used} {percent}: {room:?}");
                }
            }
        }
    }
}
