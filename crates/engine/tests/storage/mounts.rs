//! What a workload finds at its mounts and in its files.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use moat_engine::image::RunConfig;
use moat_engine::{RemoveOptions, StartOptions};
use moat_model::workload::{DeviceSpec, MountSource, MountSpec, NamespaceMode, NetworkMode, WorkloadSpec};

use crate::Case;
use crate::house::{House, output};

pub(super) const CASES: &[Case] = &[
    ("volumes_are_filled_and_outlive_workloads", volumes),
    ("anonymous_volumes_of_an_image", anonymous),
    ("volumes_from_another_workload", volumes_from),
    ("a_part_of_a_volume", part),
    ("binds_are_read_only_all_the_way_down", binds),
    ("file_systems_in_memory", memory),
    ("files_of_etc", files),
    ("users_and_folders", users),
    ("devices_and_privileges", devices),
    ("shared_memory_of_another_workload", shared_memory),
    ("user_namespaces_are_refused", user_namespace),
    ("a_volume_of_another_engine_is_not_reached", escapes),
];

fn mount(source: MountSource, target: &str, read_only: bool) -> MountSpec {
    MountSpec { source, target: target.to_owned(), read_only, idmap: None }
}

pub(super) fn volume(name: &str, target: &str) -> MountSpec {
    mount(volume_source(Some(name), None), target, false)
}

fn volume_source(name: Option<&str>, subpath: Option<&str>) -> MountSource {
    MountSource::Volume {
        name: name.map(str::to_owned),
        no_copy: false,
        subpath: subpath.map(str::to_owned),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

pub(super) fn bind(path: &std::path::Path, target: &str, read_only: bool) -> MountSpec {
    let source = MountSource::Bind {
        path: path.display().to_string(),
        create: false,
        propagation: None,
        non_recursive: false,
    };
    mount(source, target, read_only)
}

fn with(mut spec: WorkloadSpec, mounts: Vec<MountSpec>) -> WorkloadSpec {
    spec.mounts = mounts;
    spec
}

fn furnished(house: &House) {
    house.make_image("furnished", RunConfig::default(), |root| {
        std::fs::create_dir_all(root.join("data/sub")).unwrap();
        std::fs::write(root.join("data/sub/file"), "of the image").unwrap();
        chown(root.join("data/sub/file"), Some(33), Some(44)).unwrap();
        std::fs::set_permissions(root.join("data/sub/file"), PermissionsExt::from_mode(0o640)).unwrap();
    });
}

fn of(image: &str, spec: WorkloadSpec) -> WorkloadSpec {
    WorkloadSpec { image: image.to_owned(), ..spec }
}

fn volumes(house: &House) {
    furnished(house);
    let look = "stat -c '%u %g %a' /data/sub/file; cat /data/sub/file; echo more >> /data/sub/file";
    let first = of("furnished", with(house.shell(look), vec![volume("data", "/data")]));
    assert_eq!(house.output(first), "33 44 640\nof the image");
    // The second has another image, and finds what the first has left.
    let second = with(house.shell("cat /v/sub/file"), vec![volume("data", "/v")]);
    assert_eq!(house.output(second), "of the imagemore\n");
    let read_only = mount(volume_source(Some("data"), None), "/v", true);
    let third = with(house.shell("echo x > /v/new || cat /v/sub/file"), vec![read_only]);
    assert!(house.output(third).contains("Read-only file system"));
    assert_eq!(house.engine.volumes().list().unwrap().len(), 1);
    house.engine.volumes().remove("data").unwrap();
}

fn anonymous(house: &House) {
    let volumes = ["/data".to_owned()].into_iter().collect();
    house.make_image("with", RunConfig { volumes, ..RunConfig::default() }, |root| {
        std::fs::create_dir(root.join("data")).unwrap();
        std::fs::write(root.join("data/file"), "x").unwrap();
    });
    let workload = house.start(of("with", house.shell("cat /data/file; echo y > /data/file")));
    workload.wait().unwrap();
    assert_eq!(output(&workload), "x");
    let name = house.engine.volumes().list().unwrap()[0].name.clone();
    assert_eq!(name.len(), 64);
    // Started again it finds its own.
    workload.start(&StartOptions::default()).unwrap();
    workload.wait().unwrap();
    assert_eq!(output(&workload), "xy\n");
    assert!(house.engine.volumes().remove(&name).unwrap_err().to_string().contains("is in use by workload"));
    workload.remove(&RemoveOptions { force: false, volumes: false }).unwrap();
    assert_eq!(house.engine.volumes().prune(false, &|_| true).unwrap().len(), 1);
    // With auto-remove it goes along.
    let workload = house.start(WorkloadSpec { auto_remove: true, ..of("with", house.shell("true")) });
    workload.wait_removed().unwrap();
    assert_eq!(house.engine.volumes().list().unwrap(), []);
}

fn volumes_from(house: &House) {
    let mut first = with(house.shell("echo hello > /data/file"), vec![volume("data", "/data")]);
    first.name = Some("first".to_owned());
    let first = house.start(first);
    first.wait().unwrap();
    let mut second = house.shell("cat /data/file; echo x > /data/file");
    second.volumes_from = vec!["first:ro".to_owned()];
    let (_, output) = house.run(second);
    assert!(output.starts_with("hello\n") && output.contains("Read-only"), "{output}");
    let mut missing = house.shell("true");
    missing.volumes_from = vec!["nobody".to_owned()];
    assert_eq!(house.refusal(missing), "workload \"nobody\" does not exist");
    first.remove(&RemoveOptions::default()).unwrap_or_else(|_| {
        // `refusal` has removed all workloads.
        assert!(first.is_gone());
    });
    house.engine.volumes().remove("data").unwrap();
}

fn part(house: &House) {
    house.output(with(
        house.shell("mkdir -p /v/a/b; echo inner > /v/a/b/f; ln -s /a /v/link; ln -s ../../../../.. /v/up"),
        vec![volume("data", "/v")],
    ));
    let sub = |below: &str| vec![mount(volume_source(Some("data"), Some(below)), "/x", false)];
    assert_eq!(house.output(with(house.shell("cat /x/f"), sub("a/b"))), "inner\n");
    assert_eq!(house.output(with(house.shell("cat /x/b/f"), sub("link"))), "inner\n");
    assert_eq!(house.output(with(house.shell("cat /x"), sub("a/b/f"))), "inner\n");
    assert_eq!(house.output(with(house.shell("ls /x"), sub("up"))), "a\nlink\nup\n");
    assert!(house.refusal(with(house.shell("true"), sub("none"))).contains("subpath \"none\""));
    house.engine.volumes().remove("data").unwrap();
}

/// The test's mounts are in a mount namespace of its own.
fn binds(house: &House) {
    moat_linux::process::unshare(moat_linux::process::namespace::MOUNT).unwrap();
    moat_linux::mount::set_propagation(c"/", libc_private()).unwrap();
    let folder = house.path("tree");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    let context = moat_linux::mount::FsContext::open("tmpfs").unwrap();
    let tmpfs = context.mount(0).unwrap();
    let place = moat_linux::fs::open(&folder.join("below"), rustix::fs::OFlags::PATH).unwrap();
    use std::os::fd::AsFd;
    moat_linux::mount::attach(tmpfs.as_fd(), place.as_fd()).unwrap();
    std::fs::write(folder.join("below/file"), "deep").unwrap();
    let write = "cat /b/below/file; echo x > /b/below/new; echo y > /b/new; true";
    let (_, output) = house.run(with(house.shell(write), vec![bind(&folder, "/b", true)]));
    assert!(output.contains("deep") && output.matches("Read-only").count() == 2, "{output}");
    house.output(with(house.shell(write), vec![bind(&folder, "/b", false)]));
    assert!(folder.join("below/new").exists() && folder.join("new").exists());
    let mut flat = bind(&folder, "/b", false);
    if let MountSource::Bind { non_recursive, .. } = &mut flat.source {
        *non_recursive = true;
    }
    assert_eq!(house.output(with(house.shell("ls /b/below"), vec![flat])), "");
    let missing = with(house.shell("true"), vec![bind(&house.path("missing"), "/b", false)]);
    assert!(house.refusal(missing).contains("does not exist"));
    moat_linux::mount::unmount(&folder.join("below")).unwrap();
}

/// MS_REC | MS_PRIVATE
fn libc_private() -> u64 {
    0x4000 | 0x4_0000
}

fn memory(house: &House) {
    let tmpfs = |options: &[&str], mode| MountSource::Tmpfs {
        size_bytes: Some(1 << 20),
        mode,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let look = "grep ' /m ' /proc/mounts; stat -c %a /m; dd if=/dev/zero of=/m/big bs=2M count=1; ls /m/big";
    let (_, output) =
        house.run(with(house.shell(look), vec![mount(tmpfs(&["exec"], Some(0o700)), "/m", false)]));
    assert!(output.contains("nosuid,nodev") && !output.contains("noexec"), "{output}");
    assert!(
        output.contains("size=1024k") && output.contains("700\n") && output.contains("No space"),
        "{output}"
    );
    let read_only = mount(tmpfs(&[], None), "/m", true);
    assert!(house.run(with(house.shell("echo x > /m/x"), vec![read_only])).1.contains("Read-only"));
    let odd = mount(tmpfs(&["color=red"], None), "/m", false);
    assert!(
        house.refusal(with(house.shell("true"), vec![odd])).contains("\"color=red\" of a tmpfs is not known")
    );
    let shm = WorkloadSpec { shm_bytes: Some(1 << 20), ..house.shell("grep /dev/shm /proc/mounts") };
    assert!(house.output(shm).contains("size=1024k"));
}

fn files(house: &House) {
    let mut spec =
        house.shell("cat /etc/hostname /etc/hosts /etc/resolv.conf; hostname; echo x >> /etc/hosts");
    spec.hostname = Some("keep".to_owned());
    spec.network.add_hosts = vec!["db:10.0.0.7".to_owned()];
    spec.network.dns = vec!["192.0.2.1".parse().unwrap()];
    let output = house.output(spec);
    for wanted in ["keep\n127.0.0.1\tlocalhost\n", "10.0.0.7\tdb\n", "nameserver 192.0.2.1\n"] {
        assert!(output.contains(wanted), "{output}");
    }
    assert!(output.ends_with("keep\n"));
    let own = house.path("hosts");
    std::fs::write(&own, "my own").unwrap();
    let spec = with(house.shell("cat /etc/hosts"), vec![bind(&own, "/etc/hosts", true)]);
    assert_eq!(house.output(spec), "my own");
    let mut spec = house.shell("hostname; ls /proc/sys/net/ipv4/conf");
    spec.network.mode = NetworkMode::Host;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(house.output(spec).starts_with(&host));
}

fn users(house: &House) {
    let who = "id -u; id -g; id -G; echo $HOME; pwd";
    let spec = WorkloadSpec {
        user: Some("web".to_owned()),
        workdir: Some("/made/deep".to_owned()),
        ..house.shell(who)
    };
    assert_eq!(house.output(spec), "33\n44\n44 55\n/srv/web\n/made/deep\n");
    let spec = WorkloadSpec {
        user: Some("1000:media".to_owned()),
        group_add: vec!["root".to_owned()],
        ..house.shell(who)
    };
    assert_eq!(house.output(spec), "1000\n55\n55 0\n/\n/\n");
    for (user, words) in [("nobody", "is not in the image's /etc/passwd"), ("4294967296", "is not an id")] {
        let spec = WorkloadSpec { user: Some(user.to_owned()), ..house.shell(who) };
        assert!(house.refusal(spec).contains(words), "{user}");
    }
    // A working directory within a volume is made in the volume.
    let mut spec = with(house.shell("pwd; touch here"), vec![volume("data", "/data")]);
    spec.workdir = Some("/data/a/b".to_owned());
    assert_eq!(house.output(spec), "/data/a/b\n");
    assert_eq!(house.output(with(house.shell("ls /v/a/b"), vec![volume("data", "/v")])), "here\n");
    house.engine.volumes().remove("data").unwrap();
    // Names in the image lead nowhere else, and its files are not what they seem.
    house.make_image("odd", RunConfig::default(), |root| {
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        symlink("../../../../../../etc/passwd", root.join("etc/passwd")).unwrap();
    });
    let spec = WorkloadSpec { user: Some("daemon".to_owned()), ..of("odd", house.shell(who)) };
    assert!(house.refusal(spec).contains("ELOOP"));
}

fn devices(house: &House) {
    let device =
        DeviceSpec { host: "/dev/full".to_owned(), path: "/dev/mine".to_owned(), access: "rw".to_owned() };
    let spec = WorkloadSpec {
        devices: vec![device],
        ..house.shell("stat -c '%F %t %T' /dev/mine; echo x > /dev/mine")
    };
    let (_, output) = house.run(spec);
    assert!(output.starts_with("character special file 1 7\n") && output.contains("No space"), "{output}");
    let caps = "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/sysrq-trigger /proc/kcore 2>&1 | head -c 10; true";
    let plain = house.output(house.shell(caps));
    assert!(plain.contains("CapEff:\t00000000a80425fb\n") && plain.contains("Seccomp:\t2"), "{plain}");
    let privileged =
        house.output(WorkloadSpec { privileged: true, ..house.shell(&format!("{caps}; ls /dev | wc -l")) });
    assert!(privileged.contains("Seccomp:\t0") && !privileged.contains("a80425fb"), "{privileged}");
    let mut spec = house.shell(caps);
    spec.security.no_new_privileges = true;
    spec.cap_drop = vec!["ALL".to_owned()];
    let bare = house.output(spec);
    assert!(bare.contains("CapEff:\t0000000000000000\n") && bare.contains("NoNewPrivs:\t1"), "{bare}");
    let mut spec = house.shell("cat /proc/sys/net/core/somaxconn");
    spec.sysctls.insert("net.core.somaxconn".to_owned(), "77".to_owned());
    assert_eq!(house.output(spec), "77\n");
}

fn shared_memory(house: &House) {
    let mut first = house.shell("echo secret > /dev/shm/word; sleep 1000");
    first.name = Some("first".to_owned());
    let first = house.start(first);
    let mut second =
        house.shell("while ! cat /dev/shm/word 2>/dev/null; do :; done; readlink /proc/self/ns/ipc");
    second.ipc = NamespaceMode::Container("first".to_owned());
    let output = house.output(second);
    let ipc = std::fs::read_link(first.namespace("ipc").unwrap()).unwrap();
    assert_eq!(output, format!("secret\n{}\n", ipc.display()));
    let mut third = house.shell("ls /proc/1/root >/dev/null; cat /proc/1/cmdline");
    third.pid = NamespaceMode::Container("first".to_owned());
    let (_, output) = house.run(third);
    assert!(output.contains("sleep"), "PID 1 is the other's: {output:?}");
}

/// CVE-2025-24965 and relatives: nothing that an image or a volume holds leads a mount out of the workload.
fn escapes(house: &House) {
    house.make_image("links", RunConfig::default(), |root| {
        symlink("/../../../../../../tmp", root.join("out")).unwrap();
        symlink("/proc/self/fd", root.join("magic")).unwrap();
    });
    let canary = house.path("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "x").unwrap();
    let spec =
        of("links", with(house.shell("cat /out/inside/file"), vec![bind(&canary, "/out/inside", true)]));
    assert_eq!(house.output(spec), "x");
    assert!(!std::path::Path::new("/tmp/inside").exists());
}

/// The image's layers are not shown with mapped owners yet: that is told before anything is made.
fn user_namespace(house: &House) {
    for wanted in ["auto", "0:100000:65536"] {
        let spec = WorkloadSpec { userns: Some(wanted.to_owned()), ..house.shell("true") };
        let expected =
            format!("--userns {wanted}: a user namespace of the workload's own is not supported yet");
        assert_eq!(house.refusal(spec), expected);
    }
    let spec = WorkloadSpec { userns: Some("host".to_owned()), ..house.shell("id -u") };
    assert_eq!(house.output(spec), "0\n");
}
