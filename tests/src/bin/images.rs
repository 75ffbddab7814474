//! The image store on the command line of tests and benchmarks: `images STORE VERB ARGUMENT...`.
//!
//! Tests kill it at any moment and measure it; people use `moat`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program")]

use std::path::Path;
use std::process::ExitCode;

use moat_image::{LoadSpec, Ownership, Result, Store, load, silent};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("images: {error}");
            if let Some(hint) = error.hint_text() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let [root, verb, rest @ ..] = words else {
        return Err(moat_image::Error::new("usage: images STORE VERB ARGUMENT..."));
    };
    let store = Store::open(Path::new(root), Ownership::detect())?;
    match (*verb, rest) {
        ("load", [path]) => {
            for image in load(&store, Path::new(path), &LoadSpec::default(), &silent)? {
                println!("{}", image.id);
            }
        }
        ("list", []) => {
            for image in store.list()? {
                let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
                println!("{} {} {}", image.id, image.size_bytes, names.join(","));
            }
        }
        ("layers", [name]) => {
            let image = store.find(name)?;
            store.layer_paths(&image).iter().for_each(|path| println!("{}", path.display()));
        }
        ("hold", [name, holder]) => store.hold(&store.find(name)?, holder)?,
        ("release", [holder]) => store.release(holder)?,
        ("remove", [name]) => println!("{:?}", store.remove(name, false)?),
        ("prune", []) => println!("{:?}", store.prune(true, &|_| true)?),
        ("check", mode) => {
            let findings = store.check(mode.contains(&"repair"), mode.contains(&"deep"))?;
            findings.iter().for_each(|finding| println!("{finding}"));
        }
        ("usage", []) => println!("{:?}", store.disk_usage()?),
        _ => {
            return Err(moat_image::Error::new(format!(
                "images: no such verb, or wrong arguments: {words:?}"
            )));
        }
    }
    Ok(())
}
