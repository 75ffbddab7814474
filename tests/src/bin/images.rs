//! The image store on the command line of tests and benchmarks: `images STORE VERB ARGUMENT...`.
//!
//! Tests kill it at any moment and measure it; people use `moat`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program")]

use std::path::Path;
use std::process::ExitCode;

use moat_image::{
    CommitSpec, Credential, Credentials, ImportSpec, LoadSpec, Ownership, Progress, PullSpec, PushSpec,
    RegistriesSpec, Result, Store, commit, import, load, login, logout, pull, push, save,
};

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

/// What the user should know; the rest would only slow a benchmark down.
fn tell(progress: Progress) {
    match progress {
        Progress::Note(note) => eprintln!("note: {note}"),
        Progress::Retry { reason, after_ms } => eprintln!("again in {after_ms} ms: {reason}"),
        _ => {}
    }
}

/// How registries are reached: the file that the variable `IMAGES_REGISTRIES` names.
fn registries() -> Result<RegistriesSpec> {
    match std::env::var_os("IMAGES_REGISTRIES") {
        Some(path) => RegistriesSpec::load(Path::new(&path)),
        None => Ok(RegistriesSpec::default()),
    }
}

fn run(words: &[&str]) -> Result<()> {
    let [root, verb, rest @ ..] = words else {
        return Err(moat_image::Error::new("usage: images STORE VERB ARGUMENT..."));
    };
    let store = Store::open(Path::new(root), Ownership::detect())?;
    match (*verb, rest) {
        ("load", [path]) => {
            for image in load(&store, Path::new(path), &LoadSpec::default(), &tell)? {
                println!("{}", image.id);
            }
        }
        ("pull", [name]) => {
            let spec = PullSpec { registries: registries()?, ..PullSpec::default() };
            println!("{}", pull(&store, &name.parse()?, &spec, &tell)?.id);
        }
        ("push", [name]) => {
            let image = store.find(name)?;
            let spec = PushSpec { registries: registries()?, ..PushSpec::default() };
            println!("{}", push(&store, &image, &name.parse()?, &spec, &tell)?);
        }
        ("login", [domain, user, password]) => {
            let credential = Credential::Basic { user: (*user).to_owned(), password: (*password).to_owned() };
            login(&Credentials::of_user(), &registries()?, domain, &credential)?;
        }
        ("logout", [domain]) => println!("{}", logout(&Credentials::of_user(), domain)?),
        ("commit", [name, upper, new]) => {
            let base = store.find(name)?;
            let spec = CommitSpec { name: Some(new.parse()?), ..CommitSpec::default() };
            println!("{}", commit(&store, &base, Path::new(upper), &|_| false, spec, &tell)?.id);
        }
        ("tag", [name, new]) => store.tag(&store.find(name)?, &new.parse()?)?,
        ("import", [path, name]) => {
            let spec = ImportSpec { name: Some(name.parse()?), ..ImportSpec::default() };
            println!("{}", import(&store, Path::new(path), spec, &tell)?.id);
        }
        ("save", [path, names @ ..]) => {
            let file = std::fs::File::create(path)?;
            save(&store, names, file)?;
        }
        ("erofs", [name]) => {
            for layer in &store.find(name)?.layers {
                println!("{} {}", layer.chain_id, store.erofs(layer)?.metadata()?.len());
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
        ("tree", [name]) => {
            let paths = store.layer_paths(&store.find(name)?);
            let lines = match store.ownership() {
                Ownership::Privileged => moat_tests::list_overlay(&paths),
                _ => moat_tests::list_user_overlay(&paths),
            };
            lines.iter().for_each(|line| println!("{line}"));
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
