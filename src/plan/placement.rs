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

/// Virtual processors that one core may carry: sandboxes are mostly idle. Memory is not
/// shared out twice.
const VCPUS_PER_CORE: u64 = 8;

/// Position of the least loaded candidate, by the scarcer of memory and processors after
/// the sandbox is on it; the first of equals.
pub fn place(candidates: &[Candidate], need: Need) -> Result<usize, NoHost> {
    if candidates.is_empty() {
        return Err(NoHost::NoneAvailable);
    }
    let large: Vec<usize> =
        (0..candidates.len()).filter(|&at| fits(&candidates[at], need)).collect();
    if large.is_empty() {
        return Err(NoHost::TooBig);
    }
    let load = |at: usize| load_after(&candidates[at], need);
    let free = large.into_iter().filter(|&at| load(at) <= FULL);
    free.min_by_key(|&at| load(at)).ok_or(NoHost::AllFull)
}

/// Load of a host with nothing left, in millionths.
const FULL: u64 = 1_000_000;

fn fits(host: &Candidate, need: Need) -> bool {
    host.memory_mb.is_none_or(|memory| need.memory_mb <= memory)
        && host.cpu_cores.is_none_or(|cores| need.vcpus <= cores)
}

/// The scarcer of the two, in millionths. What a host never said is not scarce.
fn load_after(host: &Candidate, need: Need) -> u64 {
    let part = |used: u64, of: u64| used.saturating_mul(FULL) / of.max(1);
    let memory = host.memory_mb.map(|of| part(host.used_memory_mb + need.memory_mb, of));
    let cores = host.cpu_cores.map(|of| u64::from(of) * VCPUS_PER_CORE);
    let vcpus = cores.map(|of| part(host.used_vcpus + u64::from(need.vcpus), of));
    memory.into_iter().chain(vcpus).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: u32, memory_mb: u64, used_vcpus: u64, used_memory_mb: u64) -> Candidate {
        Candidate { cpu_cores: Some(cores), memory_mb: Some(memory_mb), used_vcpus, used_memory_mb }
    }

    const SMALL: Need = Need { vcpus: 1, memory_mb: 512 };

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
}
