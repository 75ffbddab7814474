//! What the program says to bad input: one sentence each, with its exit code, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

#[path = "machine/hands.rs"]
mod hands;

use std::path::Path;
use std::process::Command;

use hands::{Do, Folder, Machine, program};

/// What the program says, its folder left out, and its exit code.
fn said(folder: &Folder, mut command: Command, shown: &str) -> String {
    let output = command.output().unwrap();
    let folder = folder.text("");
    let errors = String::from_utf8_lossy(&output.stderr).replace(&folder, "/");
    format!("$ {shown}\n{errors}[{}]\n", output.status.code().unwrap_or(-1))
}

/// A call of the program; `@` stands for the folder.
fn call(folder: &Folder, arguments: &str) -> String {
    let own = arguments.replace('@', &folder.text(""));
    said(
        folder,
        program(&own.split(' ').collect::<Vec<_>>()),
        &format!("moat-vmm {}", arguments.replace('@', "/")),
    )
}

/// What lies in the folder; the files that the test put there.
fn listing(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The smallest ELF file with one piece of `bytes` at `address`, of which the last `memory` is not in the file.
fn elf(address: u64, memory: u64) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for number in [address, 64, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for number in [120, address, address, 8, memory, 4096] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0xf4; 8]);
    bytes
}

fn files(folder: &Folder) {
    std::fs::write(folder.join("text"), "no kernel at all\n").unwrap();
    std::fs::write(folder.join("empty"), "").unwrap();
    std::fs::write(folder.join("elf"), elf(0x10_0000, 4096)).unwrap();
    std::fs::write(folder.join("flat"), [0xf4]).unwrap();
    std::fs::write(folder.join("large"), vec![0; 2 << 20]).unwrap();
    folder.disk("disk", 1 << 20);
    std::fs::create_dir(folder.join("folder")).unwrap();
    let fifo = rustix::fs::CWD;
    rustix::fs::mknodat(fifo, folder.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[test]
fn bad_input() {
    let folder = Folder::new();
    files(&folder);
    let before = listing(&folder);
    let mut all = Vec::new();
    for arguments in [
        "run --kernel @none",
        "run --kernel @text",
        "run --kernel @empty",
        "run --kernel @folder",
        "run --kernel @fifo",
        "run --kernel fd:77",
        "run --flat @none",
        "run --flat @large --memory 1M",
        "run --flat @flat --memory 5",
        "run --flat @flat --memory 4097K",
        "run --flat @flat --memory 2M --hugepages",
        "run --flat @flat --cpus 0",
        "run --flat @flat --cpus 33",
        "run --flat @flat --disk @none",
        "run --flat @flat --disk @folder",
        "run --flat @flat --disk @fifo",
        "run --flat @flat --disk @disk,id=a-name-of-more-than-20-bytes",
        "run --flat @flat --disk @disk,queues=0",
        "run --flat @flat --disk @disk,queues=33",
        "run --flat @flat --disk @disk,format=qcow2",
        "run --flat @flat --disk @disk --disk @disk",
        "run --flat @flat --net a-name-that-is-too-long",
        "run --flat @flat --net x,queues=17",
        "run --flat @flat --vsock 2,@v.sock",
        "run --flat @flat --vsock 3,@none/v.sock",
        "run --flat @flat --vsock 3,@text",
        "run --flat @flat --api @text",
        "restore --from @none",
        "restore --from @folder",
        "status --api @none",
    ] {
        all.push(call(&folder, arguments));
    }
    insta::assert_snapshot!(all.join("\n"));
    assert_eq!(listing(&folder), before, "nothing is left behind");
}

#[test]
fn what_the_host_lacks() {
    let folder = Folder::new();
    files(&folder);
    let before = listing(&folder);
    let mut all = Vec::new();
    // A namespace of mounts in which /dev is empty, or holds another device by that name.
    let empty = "mount -t tmpfs dev /dev";
    for (lacking, arguments) in [
        (empty.to_owned(), "run --flat @flat"),
        (format!("{empty}; touch /dev/kvm"), "run --flat @flat"),
        ("mount -t tmpfs -o ro tmp /mnt".to_owned(), "run --flat @flat --disk /mnt/none"),
        ("ulimit -v 1000000".to_owned(), "run --flat @flat --memory 4G"),
    ] {
        let own = folder.text("");
        let script = under_text(&lacking, arguments, &own);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        all.push(said(&folder, command, &format!("{lacking}; moat-vmm {}", arguments.replace('@', "/"))));
    }
    insta::assert_snapshot!(all.join("\n"));
    assert_eq!(listing(&folder), before, "nothing is left behind");
}

fn under_text(wrapper: &str, arguments: &str, folder: &str) -> String {
    format!("{wrapper}; exec {} {}", env!("CARGO_BIN_EXE_moat-vmm"), arguments.replace('@', folder))
}

/// A disk on a file system that is read-only, and one that nobody may write.
#[test]
fn a_disk_that_can_not_be_written() {
    let folder = Folder::new();
    files(&folder);
    let script = format!(
        "mount --bind {0} /mnt; mount -o remount,bind,ro /mnt; exec {1} run --flat {0}flat --disk /mnt/disk",
        folder.text(""),
        env!("CARGO_BIN_EXE_moat-vmm")
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    insta::assert_snapshot!(said(&folder, command, "moat-vmm run --disk (on a read-only file system)"));
}

/// More memory than this host has can never be there.
#[test]
fn more_memory_than_the_host_has() {
    let folder = Folder::new();
    files(&folder);
    let text = call(&folder, "run --flat @flat --memory 63G");
    let digits = text.replace(|letter: char| letter.is_ascii_digit(), "");
    assert!(digits.contains("bytes of memory, and this host has"), "{text}");
    assert!(text.contains("hint: ") && text.ends_with("[1]\n"), "{text}");
}

/// Where KVM interprets every instruction, a kernel is refused with what helps.
#[test]
fn a_kernel_without_hardware_virtualization() {
    if moat_vmm::kvm::hardware_virtualization() {
        println!("this processor has VMX or SVM: there is nothing to refuse");
        return;
    }
    let folder = Folder::new();
    files(&folder);
    insta::assert_snapshot!(call(&folder, "run --kernel @elf"));
}

#[test]
fn a_triple_fault() {
    let folder = Folder::new();
    // UD2 without a table of handlers.
    std::fs::write(folder.join("flat"), [0x0f, 0x0b]).unwrap();
    let text = call(&folder, "run --flat @flat --flat-mode long");
    // Which bits of the control registers are set depends on the host.
    let start = text.find(" (CR0").unwrap();
    let end = text[start..].find(")\n").unwrap() + start;
    insta::assert_snapshot!(format!("{} (...{}", &text[..start], &text[end..]));
}

/// A guest that floods the serial port while nobody reads: it waits, the program's memory stays, and it can be
/// ended.
#[test]
fn a_flood_of_the_serial_port() {
    let folder = Folder::new();
    // mov dx, 0x3f8; out dx, al; jmp back
    std::fs::write(folder.join("flat"), [0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd]).unwrap();
    let api = folder.text("api");
    let child = program(&["run", "--flat", &folder.text("flat"), "--api", &api]).spawn().unwrap();
    let exits = || {
        let output = program(&["metrics", "--api", &api]).output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        json["exits"].as_u64().unwrap_or_default()
    };
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    // More than any pipe holds.
    while exits() < 100_000 {}
    let before = resident();
    let more = exits() + 100_000;
    while exits() < more {}
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    // What the pipe could take has come, and nothing else.
    assert!(output.stdout.len() <= 1 << 20);
    assert!(!hands::exists(Path::new(&api)), "the socket is removed");
}

/// A driver that errs without end is told of some times.
#[test]
fn a_flood_of_faults() {
    let folder = Folder::new();
    let machine = Machine::new(&folder, &["--no-serial"]);
    let base = 0xd000_0000;
    for _ in 0..30 {
        // A queue whose rings lie nowhere.
        for (register, value) in
            [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x84, 0xffff), (0x44, 1), (0x70, 15)]
        {
            machine.run(Do::Write32, base + register, value);
        }
        assert_eq!(machine.run(Do::Read32, base + 0x70, 0) & 64, 64);
    }
    let (status, _, errors) = machine.leave(0);
    assert_eq!(status.code(), Some(0));
    insta::assert_snapshot!(
        errors.lines().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n")
    );
    assert!((2..=8).contains(&errors.lines().count()), "{errors}");
}
