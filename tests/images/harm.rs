//! What goes wrong around the store: kills at any moment, full disks, too few descriptors, others at work.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use moat_image::{Kind, LoadSpec, load, silent};
use moat_tests::{LayerTar, Registry, done, plain_layout};

use super::Scratch;

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_images"))
}

/// A layout of five layers with some hundred files, a whiteout and hard links.
fn layout(scratch: &Scratch) -> PathBuf {
    let layers: Vec<Vec<u8>> = (0..5)
        .map(|number| {
            let mut tar = LayerTar::new();
            for file in 0..60 {
                tar.file(&format!("layer{number}/f{file}"), &format!("{number} {file} ").repeat(300));
            }
            tar.link(&format!("layer{number}/link"), &format!("layer{number}/f1"));
            if number > 0 {
                tar.file(&format!("layer{}/.wh.f2", number - 1), "");
            }
            tar.finish()
        })
        .collect();
    plain_layout(&scratch.path().join("layout"), &layers)
}

/// After a repair nothing is wrong, and what images there are are whole.
#[track_caller]
fn assert_mended(store: &moat_image::Store, when: &str) {
    let findings = store.check(true, true).unwrap();
    assert!(findings.iter().all(|finding| finding.repair.is_some()), "{when}: {findings:?}");
    assert_eq!(store.check(false, true).unwrap(), [], "{when}");
    for image in store.list().unwrap() {
        let paths = store.layer_paths(&image);
        assert!(paths.iter().all(|path| path.is_dir()), "{when}");
    }
}

/// Numbers that look like chance and repeat from run to run.
fn numbers(count: usize, below: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        1 + state % below
    })
    .take(count)
}

/// Runs the program; strace kills it when one of its threads makes its n-th system call.
fn killed_at(call: u64, arguments: &[&str]) -> Output {
    let inject = format!("inject=all:signal=SIGKILL:when={call}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qqq", "-o", "/dev/null", "-e", &inject]).arg(program()).args(arguments);
    strace.output().unwrap()
}

/// SIGKILL after a number of system calls, many times in one store: what each leaves is found and mended, and the
/// next one builds on it.
#[test]
fn what_is_killed_leaves_nothing_that_is_not_mended() {
    let scratch = Scratch::new();
    let layout = layout(&scratch);
    let registry = Registry::start();
    registry.fill(&format!("oci:{}", layout.display()), "killed:1");
    let remote = registry.name("killed:1");
    let upper = scratch.path().join("upper");
    std::fs::create_dir(&upper).unwrap();
    std::fs::write(upper.join("changed"), "x".repeat(10_000)).unwrap();
    let root = scratch.store.root().to_str().unwrap();
    let (layout, upper, name) = (layout.to_str().unwrap(), upper.to_str().unwrap(), "test.example/image:1");
    let verbs: [&[&str]; 5] = [
        &["load", layout],
        &["commit", name, upper, "committed:1"],
        &["pull", &remote],
        &["remove", name],
        &["remove", &remote],
    ];
    let mut killed = [0; 5];
    // A thread of the whole load makes some hundred calls; low numbers are early ones.
    for (turn, call) in numbers(150, 120).enumerate() {
        let verb = verbs[turn % verbs.len()];
        let output = killed_at(call, &[&[root], verb].concat());
        killed[turn % verbs.len()] += usize::from(!output.status.success() && output.stderr.is_empty());
        assert_mended(&scratch.store, &format!("{verb:?} killed at {call}"));
    }
    let enough = killed.iter().all(|count| *count >= 1) && killed.iter().sum::<usize>() >= 20;
    assert!(enough, "{killed:?} were killed");
    done(Command::new(program()).args([root, "load", layout]));
    done(Command::new(program()).args([root, "commit", name, upper, "committed:1"]));
    done(Command::new(program()).args([root, "pull", &remote]));
    for name in [name, "committed:1", &remote] {
        assert_eq!(scratch.store.find(name).unwrap().config.os, "linux");
    }
    scratch.assert_clean();
}

/// SIGKILL while layers become disks: what is there is whole, and the rest is made by who asks next.
#[test]
fn what_is_killed_while_it_makes_disks_leaves_none_that_is_half_made() {
    let scratch = Scratch::new();
    let image = load(&scratch.store, &layout(&scratch), &LoadSpec::default(), &silent).unwrap().remove(0);
    let root = scratch.store.root().to_str().unwrap();
    let disks: Vec<PathBuf> =
        scratch.store.layer_paths(&image).iter().map(|folder| folder.with_file_name("erofs")).collect();
    let mut killed = 0;
    for call in numbers(40, 600) {
        let output = killed_at(call, &[root, "erofs", "test.example/image:1"]);
        killed += usize::from(!output.status.success() && output.stderr.is_empty());
        assert_mended(&scratch.store, &format!("killed at {call}"));
        done(Command::new(program()).args([root, "erofs", "test.example/image:1"]));
        for disk in &disks {
            std::fs::remove_file(disk).unwrap();
        }
    }
    assert!(killed >= 10, "{killed} were killed");
    scratch.assert_clean();
}

/// A file system that is too small: a sentence, and nothing that is not mended; with more room it goes on.
#[test]
fn a_full_disk_is_told_and_mended() {
    let scratch = Scratch::new();
    let layout = layout(&scratch);
    let place = scratch.path().join("small");
    std::fs::create_dir(&place).unwrap();
    // In a mount namespace of its own, so that nothing is mounted here.
    let script = format!(
        "set -e
        mount -t tmpfs -o size=$1k small {place}
        if {program} {place}/images load {layout} > /dev/null 2> {place}.said; then echo whole; else echo failed; fi
        mount -o remount,size=100m {place}
        {program} {place}/images check repair deep > {place}.repaired
        {program} {place}/images check deep
        {program} {place}/images load {layout} > /dev/null
        {program} {place}/images check deep
        {program} {place}/images list",
        place = place.display(),
        program = program().display(),
        layout = layout.display(),
    );
    let mut failed = 0;
    for kib in [64, 200, 400, 700, 1000, 1300, 5000] {
        let said = done(Command::new("unshare").args(["-m", "sh", "-c", &script, "sh", &kib.to_string()]));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{kib} KiB: {said}");
        assert!(lines[1].ends_with("test.example/image:1"), "{said}");
        if lines[0] == "failed" {
            failed += 1;
            let said = std::fs::read_to_string(format!("{}.said", place.display())).unwrap();
            assert!(said.contains("ENOSPC"), "{kib} KiB: {said}");
        }
    }
    assert!((3..7).contains(&failed), "{failed} of 7 failed");
}

/// Too few descriptors: a sentence that names the error, never a panic.
#[test]
fn too_few_descriptors_are_told_and_mended() {
    let scratch = Scratch::new();
    let layout = layout(&scratch);
    let root = scratch.store.root().display().to_string();
    let mut failed = 0;
    for limit in [5, 6, 7, 8, 10, 12, 14, 16, 20, 64] {
        let line =
            format!("ulimit -n {limit}; exec {} {root} load {}", program().display(), layout.display());
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            failed += 1;
            assert!(said.contains("EMFILE") && output.status.code() == Some(1), "{limit}: {said}");
        }
        assert_mended(&scratch.store, &format!("{limit} descriptors"));
        if output.status.success() {
            scratch.store.remove("test.example/image:1", true).unwrap();
        }
    }
    assert!((1..10).contains(&failed), "{failed} of 10 failed");
}

/// Loading, removing and pruning side by side: an image that is there is whole.
#[test]
fn prunes_beside_loads_take_nothing_that_is_used() {
    let scratch = Scratch::new();
    let layout = layout(&scratch);
    let name = "test.example/image:1";
    let (store, from) = (&scratch.store, &layout);
    std::thread::scope(|scope| {
        let loaders: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    for _ in 0..8 {
                        match load(store, from, &LoadSpec::default(), &silent) {
                            Ok(images) => assert_eq!(images[0].layers.len(), 5),
                            // It was removed between its coming and the look at it.
                            Err(error) => assert_eq!(error.kind(), Kind::NotFound, "{error}"),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while !loaders.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                let _ = store.remove(name, true);
                store.prune(true, &|_| true).unwrap();
            }
        });
    });
    let image = load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0);
    assert_eq!(scratch.store.find(name).unwrap().id, image.id);
    assert!(scratch.store.layer_paths(&image).iter().all(|path| Path::is_dir(path)));
    scratch.assert_clean();
}

/// A layer whose folder is damaged is unpacked again; an image whose blob is damaged goes.
#[test]
fn damage_is_found_and_mended() {
    let scratch = Scratch::new();
    let image = load(&scratch.store, &layout(&scratch), &LoadSpec::default(), &silent).unwrap().remove(0);
    let before = scratch.tree(&image);
    let paths = scratch.store.layer_paths(&image);
    std::fs::remove_dir_all(&paths[2]).unwrap();
    std::fs::remove_file(paths[1].with_file_name("layer.json")).unwrap();
    assert_eq!(scratch.store.check(false, true).unwrap().len(), 2);
    assert_mended(&scratch.store, "damaged layers");
    assert_eq!(scratch.tree(&image), before);

    let blob = scratch.store.root().join("blobs").join(image.layers[0].blob.digest.hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    assert_eq!(scratch.store.check(false, false).unwrap(), [], "only a deep check reads blobs");
    assert_mended(&scratch.store, "a damaged blob");
    assert_eq!(scratch.store.list().unwrap(), []);
}
