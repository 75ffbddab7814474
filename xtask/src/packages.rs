//! Debian packages that the tools and the tests call. Each line states its reason.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command;

pub(crate) struct Package {
    name: &'static str,
    /// Who calls it.
    _reason: &'static str,
}

const fn package(name: &'static str, reason: &'static str) -> Package {
    Package { name, _reason: reason }
}

pub(crate) const BUSYBOX: Package = package("busybox-static", "the root file system of test bundles");
pub(crate) const GCC: Package = package("gcc", "the floor program of the benchmark");
pub(crate) const LIBC: Package = package("libc6-dev", "headers and the static libc for it");
pub(crate) const RUNC: Package = package("runc", "a peer, and the shape that others expect");
pub(crate) const CRUN: Package = package("crun", "a peer");
pub(crate) const UTIL_LINUX: Package = package("util-linux", "unshare, setpriv, mount in tests");
pub(crate) const QEMU: Package = package("qemu-system-x86", "the machine that the lab emulates");
pub(crate) const XZ: Package = package("xz-utils", "unpacks the lab's kernel");

pub(crate) const IPROUTE: Package = package("iproute2", "ip: shows and makes network devices");
pub(crate) const NFTABLES: Package =
    package("nftables", "nft: shows the packet filter, and flushes it as others may");

pub(crate) const REGISTRY: Package = package("docker-registry", "a registry on loopback");
pub(crate) const SKOPEO: Package = package("skopeo", "fills registries, and reads what we save");
pub(crate) const UMOCI: Package = package("umoci", "makes images, and unpacks them for comparison");
pub(crate) const PODMAN: Package = package("podman", "a peer, and a user of moat-runtime");

/// What `cargo xtask bench pull` calls.
pub(crate) const BENCH_PULL: &[Package] = &[GCC, LIBC, REGISTRY, SKOPEO, UMOCI, PODMAN];
/// What `cargo xtask lab` calls.
pub(crate) const LAB: &[Package] = &[QEMU, UTIL_LINUX, XZ];
/// What `cargo xtask bench runtime` calls.
pub(crate) const BENCH: &[Package] = &[BUSYBOX, GCC, LIBC, RUNC, CRUN, UTIL_LINUX];
/// What `cargo xtask bench run` calls.
pub(crate) const BENCH_RUN: &[Package] = &[
    BUSYBOX,
    CRUN,
    PODMAN,
    UTIL_LINUX,
    IPROUTE,
    package("containernetworking-plugins", "networks of Podman"),
    package("docker.io", "a peer: its daemon and its client"),
];
/// What `cargo xtask bench net` calls.
pub(crate) const BENCH_NET: &[Package] =
    &[BUSYBOX, UTIL_LINUX, IPROUTE, NFTABLES, package("iperf3", "measures throughput")];
/// What `cargo xtask demo` calls.
pub(crate) const DEMO: &[Package] = &[BUSYBOX, REGISTRY, SKOPEO, UMOCI];
/// What `cargo xtask kernel` calls.
pub(crate) const KERNEL: &[Package] = &[
    package("linux-source-6.1", "the kernel's source"),
    package("flex", "the kernel's configuration language"),
    package("bison", "the kernel's configuration language"),
    package("bc", "constants that the kernel's build computes"),
    package("libelf-dev", "objtool, which checks the kernel's objects"),
    package("make", "builds the kernel"),
    package("binutils", "strip"),
    GCC,
    LIBC,
    XZ,
];
/// What `cargo xtask fuzz` calls.
pub(crate) const FUZZ: &[Package] = &[package("g++", "libFuzzer is written in C++")];
/// What the tests call.
pub(crate) const TESTS: &[Package] = &[
    BUSYBOX,
    QEMU,
    UTIL_LINUX,
    GCC,
    LIBC,
    RUNC,
    CRUN,
    PODMAN,
    package("containerd", "drives moat-runtime through its stock shim"),
    package("uidmap", "newuidmap and newgidmap for rootless containers"),
    package("cpio", "reads and writes archives in tests"),
    XZ,
    IPROUTE,
    package("e2fsprogs", "mke2fs: file systems on scratch disks"),
    package("erofs-utils", "fsck.erofs, which checks the file systems that our writer makes"),
    package("python3", "small servers in tests, such as a seccomp agent"),
    package("python3-seccomp", "libseccomp, whose decisions ours are held against"),
    REGISTRY,
    SKOPEO,
    UMOCI,
    package("buildah", "makes layers by comparing root file systems"),
    package("mmdebstrap", "makes the root file system of an image as large as real ones"),
    package("openssl", "makes the certificate of a test registry"),
    package("strace", "kills a program at a certain system call"),
    NFTABLES,
    package("dnsutils", "dig: asks the resolvers of networks"),
    package("iputils-ping", "ping: echoes with addresses that are not one's own"),
    package("procps", "ps: lists the processes of a container"),
];

/// Whether nothing of them is missing.
pub(crate) fn all_installed(packages: &[Package]) -> Result<bool> {
    Ok(missing(packages)?.is_empty())
}

fn missing(packages: &[Package]) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for package in packages {
        if !installed(package.name)? {
            missing.push(package.name);
        }
    }
    Ok(missing)
}

/// Installs what is missing; does nothing, and asks no server, when all is there.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    command::step(&mut apt_get("update"))?;
    command::step(apt_get("install").args(["--yes", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("cannot install {}", missing.join(", ")))
}

/// apt-get, as root, that asks nothing and starts no service.
pub(crate) fn apt_get(verb: &str) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    // invoke-rc.d starts nothing in runlevel 1, so a daemon that comes with a package stays off.
    command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "-qq", verb]);
    command
}

fn installed(name: &str) -> Result<bool> {
    let done = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .context("cannot start dpkg-query; the tools expect Debian 12")?;
    Ok(done.stdout == b"installed")
}
