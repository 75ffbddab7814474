//! What goes into a workload and what comes out of it: files, archives, images, new limits.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use moat_engine::image::{CommitSpec, EntryType, Reference, RunConfig, TarReader, silent};
use moat_engine::{CopyOptions, StartOptions, Workload};
use moat_model::workload::{LimitsSpec, WorkloadSpec};

use crate::Case;
use crate::house::{House, output};
use crate::mounts::{bind, volume};

pub(super) const CASES: &[Case] = &[
    ("copies_go_by_dockers_rules", rules),
    ("owners_and_powers", owners),
    ("archives_in_and_out", archives),
    ("volumes_are_reached_though_nothing_runs", stopped),
    ("links_of_a_workload_stay_within_it", links),
    ("a_workload_that_swaps_gains_nothing", racer),
    ("what_a_workload_has_changed", diff),
    ("export_and_commit", export),
    ("new_limits", limits),
];

const PLAIN: CopyOptions = CopyOptions { archive: false, follow: false };
const ARCHIVE: CopyOptions = CopyOptions { archive: true, follow: false };

fn sleeping(house: &House, line: &str) -> Workload {
    let workload = house.start(house.shell(&format!("{line}; echo ready; exec sleep 1000")));
    while !output(&workload).contains("ready") {
        std::thread::yield_now();
    }
    workload
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn rules(house: &House) {
    let workload = sleeping(house, "mkdir -p /there/sub; echo old > /there/file");
    let local = house.path("local");
    std::fs::create_dir_all(local.join("folder/deep")).unwrap();
    std::fs::write(local.join("file"), "one").unwrap();
    std::fs::write(local.join("folder/deep/file"), "two").unwrap();
    let copy_in = |from: &str, to: &str| workload.copy_in(&local.join(from), to, &PLAIN);
    let out = |from: &str, to: &str| workload.copy_out(from, &local.join(to), &PLAIN);
    // Files.
    copy_in("file", "/there/new").unwrap();
    copy_in("file", "/there/file").unwrap();
    copy_in("file", "/there/sub").unwrap();
    assert!(copy_in("file", "/there/none/").unwrap_err().to_string().contains("does not exist"));
    assert!(copy_in("file", "/none/deep").unwrap_err().to_string().contains("does not exist"));
    assert!(copy_in("file/", "/there").unwrap_err().to_string().contains("is not a folder"));
    for (from, to) in [("/there/new", "a"), ("/there/file", "b"), ("/there/sub/file", "c")] {
        out(from, to).unwrap();
        assert_eq!(read(&local.join(to)), "one");
    }
    // Folders.
    copy_in("folder", "/there/made").unwrap();
    copy_in("folder", "/there/sub").unwrap();
    copy_in("folder/.", "/there/sub").unwrap();
    assert!(copy_in("folder", "/there/file").unwrap_err().to_string().contains("over the file"));
    out("/there/made/deep/file", "d").unwrap();
    out("/there/sub/folder", "e").unwrap();
    out("/there/sub/.", "f").unwrap();
    std::fs::create_dir(local.join("g")).unwrap();
    out("/there/sub", "g").unwrap();
    out("/there/sub/.", "g").unwrap();
    for path in ["d", "e/deep/file", "f/deep/file", "f/folder/deep/file", "g/sub/deep/file", "g/deep/file"] {
        assert_eq!(read(&local.join(path)), "two", "{path}");
    }
    // What is there and of another kind stays.
    std::fs::create_dir_all(local.join("clash/there")).unwrap();
    std::fs::write(local.join("clash/there/sub"), "x").unwrap();
    let error = out("/there", "clash").unwrap_err().to_string();
    assert!(error.contains("folder can not be copied over what is none"), "{error}");
    let error = workload.copy_out("/none", &local.join("x"), &PLAIN).unwrap_err();
    assert!(error.to_string().contains("there is no such file or folder"), "{error}");
    let error = out("/proc/version", "x").unwrap_err().to_string();
    assert!(error.contains("something that the kernel shows"), "{error}");
    let stat = workload.path_stat("/there/new").unwrap();
    assert_eq!((stat.name.as_str(), stat.size_bytes), ("new", 3));
}

fn owners(house: &House) {
    let line = "echo x > /tool; chown 33:44 /tool; chmod 4755 /tool; ln -s /tool /link; ln /tool /second";
    let workload = sleeping(house, line);
    let local = house.path("local");
    std::fs::create_dir_all(&local).unwrap();
    workload.copy_out("/tool", &local.join("plain"), &PLAIN).unwrap();
    workload.copy_out("/tool", &local.join("kept"), &ARCHIVE).unwrap();
    let look = |name: &str| {
        let found = std::fs::symlink_metadata(local.join(name)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!((look("plain"), look("kept")), ((0, 0, 0o755), (33, 44, 0o4755)));
    // A link is copied as one, unless it is to be followed.
    workload.copy_out("/link", &local.join("link"), &PLAIN).unwrap();
    assert_eq!(std::fs::read_link(local.join("link")).unwrap(), Path::new("/tool"));
    workload.copy_out("/link", &local.join("followed"), &CopyOptions { follow: true, ..PLAIN }).unwrap();
    assert!(local.join("followed").symlink_metadata().unwrap().is_file());
    // Into the workload: root's, unless owners are kept.
    chown(local.join("kept"), Some(7), Some(8)).unwrap();
    std::fs::set_permissions(local.join("kept"), PermissionsExt::from_mode(0o640)).unwrap();
    workload.copy_in(&local.join("kept"), "/tmp/plain", &PLAIN).unwrap();
    workload.copy_in(&local.join("kept"), "/tmp/kept", &ARCHIVE).unwrap();
    let root = format!("/proc/{}/root", workload.state().unwrap().process.pid);
    let look = |name: &str| {
        let found = std::fs::symlink_metadata(format!("{root}/tmp/{name}")).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777, found.mtime())
    };
    let time = std::fs::metadata(local.join("kept")).unwrap().mtime();
    assert_eq!((look("plain"), look("kept")), ((0, 0, 0o640, time), (7, 8, 0o640, time)));
}

/// Name, kind and link of each entry.
fn entries(archive: &[u8]) -> Vec<(String, EntryType, String)> {
    let mut reader = TarReader::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.push((text(&entry.path), entry.kind, text(&entry.link)));
    }
    found
}

fn archives(house: &House) {
    let workload = sleeping(house, "mkdir -p /a/b; echo 1 > /a/b/f; ln /a/b/f /a/g; ln -s /x /a/l");
    let mut archive = Vec::new();
    workload.copy_from("/a", &PLAIN, &mut archive).unwrap();
    let names: Vec<_> =
        entries(&archive).into_iter().map(|(name, kind, link)| format!("{name} {kind:?} {link}")).collect();
    assert_eq!(
        names,
        ["a/ Directory ", "a/b/ Directory ", "a/b/f Regular ", "a/g Link a/b/f", "a/l Symlink /x"]
    );
    workload.copy_to("/tmp", &PLAIN, archive.as_slice()).unwrap();
    workload.copy_to("/tmp", &PLAIN, archive.as_slice()).unwrap();
    let mut again = Vec::new();
    workload.copy_from("/tmp/a", &PLAIN, &mut again).unwrap();
    assert_eq!(entries(&archive), entries(&again));
    let mut contents = Vec::new();
    workload.copy_from("/a/.", &PLAIN, &mut contents).unwrap();
    assert!(entries(&contents).iter().all(|(name, ..)| name.starts_with("./")), "{:?}", entries(&contents));
    assert!(
        workload
            .copy_to("/tmp/none", &PLAIN, archive.as_slice())
            .unwrap_err()
            .to_string()
            .contains("does not exist")
    );
    assert!(workload.copy_to("/tmp", &PLAIN, &archive[..700]).is_err(), "cut short");
    // What the kernel shows is no part of the root.
    let mut all = Vec::new();
    workload.copy_from("/", &PLAIN, &mut all).unwrap();
    let all = entries(&all);
    assert!(all.iter().any(|(name, ..)| name == "./proc/"));
    assert!(!all.iter().any(|(name, ..)| name.starts_with("./proc/") && name.len() > 7));
}

fn stopped(house: &House) {
    let mut spec = house.shell("cat /data/sub/file");
    spec.mounts = vec![volume("data", "/data/sub"), bind(&house.path("shown"), "/shown", true)];
    std::fs::create_dir(house.path("shown")).unwrap();
    std::fs::write(house.path("shown/x"), "bound").unwrap();
    std::fs::write(house.path("file"), "put there").unwrap();
    let workload = house.engine.create(spec).unwrap();
    workload.copy_in(&house.path("file"), "/data/sub/file", &PLAIN).unwrap();
    workload.copy_in(&house.path("file"), "/etc/new", &PLAIN).unwrap();
    let error = workload.copy_in(&house.path("file"), "/shown/new", &PLAIN).unwrap_err().to_string();
    assert!(error.contains("EROFS"), "{error}");
    workload.copy_out("/shown/x", &house.path("out"), &PLAIN).unwrap();
    assert_eq!(read(&house.path("out")), "bound");
    workload.start(&StartOptions::default()).unwrap();
    workload.wait().unwrap();
    assert_eq!(output(&workload), "put there");
    workload.copy_out("/etc/new", &house.path("again"), &PLAIN).unwrap();
    assert_eq!(read(&house.path("again")), "put there");
    // The mounts of a look at it are gone with it.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&house.path("moat").display().to_string()));
    // So is its thread, in a moment.
    while std::fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
}

/// CVE-2018-15664 and CVE-2019-14271: links lead where they lead for the workload, and nothing of it is run.
fn links(house: &House) {
    let line = "mkdir -p /run/x /lib; ln -s /run /var; echo inside > /run/x/f; ln -s ../../../../.. /up; \
        ln -s /etc/moat-canary /dangling; echo evil > /lib/libnss_files.so.2; echo evil > /lib/libnss_dns.so.2";
    let workload = sleeping(house, line);
    workload.copy_out("/var/x/f", &house.path("f"), &PLAIN).unwrap();
    assert_eq!(read(&house.path("f")), "inside\n");
    let host = house.path("host");
    std::fs::write(&host, "host").unwrap();
    workload.copy_in(&host, "/var/x/new", &PLAIN).unwrap();
    workload.copy_out("/up/run/x/new", &house.path("new"), &PLAIN).unwrap();
    assert_eq!(read(&house.path("new")), "host");
    // A link that dangles is followed to its place within the workload.
    workload.copy_in(&host, "/dangling", &PLAIN).unwrap();
    assert!(!Path::new("/etc/moat-canary").exists());
    workload.copy_out("/etc/moat-canary", &house.path("canary"), &PLAIN).unwrap();
    // An entry of an archive does not go through a link, and none leaves the folder.
    let tree = house.path("tree");
    std::fs::create_dir_all(tree.join("x")).unwrap();
    std::fs::write(tree.join("x/f"), "changed").unwrap();
    let mut archive = Vec::new();
    moat_engine::image::write_root(&tree, moat_engine::image::Ownership::Privileged, &mut archive, &|_| {
        false
    })
    .unwrap();
    let target = house.path("target");
    std::fs::create_dir(&target).unwrap();
    symlink(house.path("canaries"), target.join("x")).unwrap();
    std::fs::create_dir(house.path("canaries")).unwrap();
    workload.copy_in(&tree, "/tmp", &PLAIN).unwrap();
    let error = workload.copy_out("/tmp/tree/.", &target, &PLAIN).unwrap_err().to_string();
    assert!(error.contains("a folder can not be copied over what is none"), "{error}");
    assert_eq!(std::fs::read_dir(house.path("canaries")).unwrap().count(), 0);
}

/// A workload swaps a folder with a link to the host's root, as fast as it can, while files are copied.
fn racer(house: &House) {
    let workload = sleeping(
        house,
        "mkdir -p /race/dir; echo mine > /race/dir/shadow; ln -s / /race/link; echo mine > /shadow",
    );
    let root = format!("/proc/{}/root/race", workload.state().unwrap().process.pid);
    let canary = house.path("shadow");
    std::fs::write(&canary, "of the host").unwrap();
    // `/` is the workload's own, so whatever happens the host's file of this path must be neither read nor written.
    let host = format!("/race/dir{}", canary.display());
    let stop = AtomicBool::new(false);
    let files = house.path("in");
    std::fs::write(&files, "from the host").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (one, other) = (format!("{root}/dir"), format!("{root}/link"));
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags);
            }
        });
        // Also when an assertion fails, or nobody would ever see that.
        let _stop = StopAtEnd(&stop);
        for round in 0..300 {
            let out = house.path(&format!("out-{round}"));
            if workload.copy_out("/race/dir/shadow", &out, &PLAIN).is_ok() {
                assert_eq!(read(&out), "mine\n");
            }
            let _ = workload.copy_in(&files, "/race/dir/shadow2", &PLAIN);
            assert!(workload.copy_out(&host, &house.path("never"), &PLAIN).is_err());
            let _ = workload.copy_in(&files, &host, &PLAIN);
            let mut archive = Vec::new();
            // A folder that goes while it is read may fail the copy, but shows nothing of the host.
            if workload.copy_from("/race", &PLAIN, &mut archive).is_ok() {
                assert!(!entries(&archive).iter().any(|(name, ..)| name.starts_with("race/link/etc")));
            }
        }
    });
    assert_eq!(read(&canary), "of the host");
    assert!(!Path::new("/shadow2").exists());
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn letters(workload: &Workload) -> Vec<String> {
    let changes = workload.diff().unwrap();
    changes.iter().map(|change| format!("{} {}", change.kind.letter(), change.path.display())).collect()
}

fn diff(house: &House) {
    house.make_image("some", RunConfig::default(), |root| {
        for folder in ["keep", "gone/deep", "anew"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            std::fs::write(root.join(folder).join("f"), "x").unwrap();
        }
    });
    let line = "echo y >> /keep/f; rm -r /gone; mkdir -p /new/sub; echo z > /new/sub/f; rm -r /anew; mkdir /anew; \
        echo q > /anew/g; rm /etc/group; touch /tmp/t; rm /tmp/t";
    let mut spec = WorkloadSpec { image: "some".to_owned(), ..house.shell(line) };
    spec.mounts = vec![volume("data", "/mnt/data")];
    let workload = house.start(spec);
    assert_eq!(workload.wait().unwrap().code, 0);
    let expected = [
        "C /anew",
        "D /anew/f",
        "A /anew/g",
        "C /etc",
        "D /etc/group",
        "D /gone",
        "C /keep",
        "C /keep/f",
        "A /new",
        "A /new/sub",
        "A /new/sub/f",
        "C /tmp",
    ];
    assert_eq!(letters(&workload), expected);
    let idle = house.start(house.shell("true"));
    idle.wait().unwrap();
    assert_eq!(letters(&idle), Vec::<String>::new());
}

fn export(house: &House) {
    let mut spec = house
        .shell("rm /etc/group; echo changed > /etc/passwd; echo v > /data/v; echo ready; exec sleep 1000");
    spec.mounts = vec![volume("data", "/data")];
    let workload = house.start(spec);
    while !output(&workload).contains("ready") {
        std::thread::yield_now();
    }
    let look = || {
        let mut archive = Vec::new();
        workload.export(&mut archive).unwrap();
        let mut names: Vec<String> = entries(&archive).into_iter().map(|(name, ..)| name).collect();
        names.iter_mut().for_each(|name| *name = name.trim_start_matches("./").to_owned());
        names
    };
    let running = look();
    assert!(
        running.contains(&"etc/passwd".to_owned()) && !running.contains(&"etc/group".to_owned()),
        "{running:?}"
    );
    assert!(running.contains(&"data/".to_owned()) && !running.contains(&"data/v".to_owned()), "{running:?}");
    assert!(!running.iter().any(|name| name.starts_with("proc/") && name != "proc/"), "{running:?}");
    let spec = CommitSpec { name: Some(Reference::parse("after").unwrap()), ..CommitSpec::default() };
    workload.commit(spec, true, &silent).unwrap();
    assert_eq!(workload.state().unwrap().status, moat_model::workload::Status::Running);
    workload.stop(&moat_engine::StopOptions { signal: Some(9), timeout_ms: None }).unwrap();
    assert_eq!(look(), running, "the same when it does not run");
    let after =
        WorkloadSpec { image: "after".to_owned(), ..house.shell("cat /etc/passwd; ls /data; ls /etc/group") };
    let (_, output) = house.run(after);
    assert!(
        output.starts_with("changed\n") && output.contains("No such file") && !output.contains("\nv\n"),
        "{output}"
    );
}

fn limits(house: &House) {
    let mut spec = house.shell("exec sleep 1000");
    spec.limits = LimitsSpec { memory_bytes: Some(64 << 20), pids: Some(10), ..LimitsSpec::default() };
    let workload = house.start(spec);
    let group = |controller: &str| {
        let text = read(Path::new(&format!("/proc/{}/cgroup", workload.state().unwrap().process.pid)));
        let groups: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
            })
            .collect();
        match groups.get(controller) {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}"),
            None => format!("/sys/fs/cgroup{}", groups[""]),
        }
    };
    let either = |controller: &str, v1: &str, v2: &str| {
        let group = group(controller);
        let path =
            [v1, v2].map(|name| format!("{group}/{name}")).into_iter().find(|path| Path::new(path).exists());
        read(Path::new(&path.unwrap())).trim().to_owned()
    };
    let memory = || either("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!((memory().as_str(), either("pids", "pids.max", "pids.max").as_str()), ("67108864", "10"));
    let wanted = LimitsSpec { memory_bytes: Some(128 << 20), ..LimitsSpec::default() };
    workload.update(&wanted, None).unwrap();
    assert_eq!((memory().as_str(), either("pids", "pids.max", "pids.max").as_str()), ("134217728", "10"));
    workload.update(&LimitsSpec { memory_bytes: Some(32 << 20), ..LimitsSpec::default() }, None).unwrap();
    assert_eq!(memory(), "33554432");
    let error =
        workload.update(&LimitsSpec { memory_bytes: Some(1), ..LimitsSpec::default() }, None).unwrap_err();
    assert!(error.to_string().contains("at least 6291456 bytes"), "{error}");
    assert_eq!(memory(), "33554432");
    let saved = house.engine.find(workload.id().as_str()).unwrap();
    assert_eq!((saved.spec().limits.memory_bytes, saved.spec().limits.pids), (Some(32 << 20), Some(10)));
}
