//! The binary that is given to others, by the profile `dist`: static, and small.
//!
//! Never: runs it.

use crate::Bench;
use crate::stage::{ROOST, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most it may weigh, in MB.
const SIZE_MB_MAX: f64 = 8.0;

/// Where a 64-bit ELF file says where its program headers are, how large each is and how
/// many there are.
const HEADERS_AT: usize = 32;
const HEADER_BYTES_AT: usize = 54;
const HEADER_COUNT_AT: usize = 56;

/// As much as is read of the file; its headers come first.
const HEADERS_BYTES_MAX: usize = 4096;

/// The kind of program header that names a dynamic loader.
const INTERPRETER: u32 = 3;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    // Beside the one of this bench, whose profile is `release`.
    let dist = Path::new(ROOST).parent().and_then(Path::parent).ok_or("no directory")?.join("dist");
    let Ok(mut file) = File::open(dist.join("roost")) else {
        let advice = "not measured: `cargo build --profile dist` makes the binary first";
        bench.sink.expects(bench.quick, advice);
        return Ok(());
    };
    let mut elf = vec![0; HEADERS_BYTES_MAX];
    let bytes = file.metadata()?.len();
    file.read_exact(&mut elf)?;
    let asks = interpreters(&elf).ok_or("the binary is no ELF file")?;
    bench.sink.expects(asks == 0, "the binary asks for a dynamic loader");
    bench.sink.judges("dynamic loaders that the binary asks for", asks as f64, "", 0.0)?;
    bench.sink.judges("size of the binary", bytes as f64 / 1e6, "MB", SIZE_MB_MAX)
}

fn interpreters(elf: &[u8]) -> Option<usize> {
    let short = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let first = usize::try_from(long(HEADERS_AT)?).ok()?;
    let (bytes, count) = (short(HEADER_BYTES_AT)?, short(HEADER_COUNT_AT)?);
    let mut found = 0;
    for number in 0..usize::from(count) {
        let at = first + number * usize::from(bytes);
        let kind = u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?);
        found += usize::from(kind == INTERPRETER);
    }
    elf.starts_with(b"\x7fELF").then_some(found)
}
