//! Builds `moat/hello`: compiles its one program and packs it as the layer of an image.
//!
//! The compiler is called directly. A cargo within cargo would need a target folder and a lock of its own; the program
//! has no dependencies, so there is nothing that a second cargo would be good for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let source = Path::new("../hello/src");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let program = out.join("hello");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-name", "moat_hello", "--target", &variable("TARGET")?]);
    // Static, because its root file system has nothing else; small, because it is carried by everybody.
    for option in [
        "opt-level=z",
        "panic=abort",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "target-feature=+crt-static",
        "relocation-model=static",
    ] {
        rustc.args(["-C", option]);
    }
    let status = rustc.arg("-o").arg(&program).arg(source.join("main.rs")).status()?;
    if !status.success() {
        return Err(format!("rustc of moat/hello ended with {status}").into());
    }
    pack(&std::fs::read(&program)?, &out.join("hello.tar.gz"))
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// An archive of one file, the same bytes for the same program.
fn pack(program: &[u8], to: &Path) -> Result<()> {
    let packed = flate2::write::GzEncoder::new(std::fs::File::create(to)?, flate2::Compression::best());
    let mut archive = tar::Builder::new(packed);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_size(program.len().try_into()?);
    archive.append_data(&mut header, "hello", program)?;
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}
