//! Facts about a process's surroundings, each a line of text, read from /proc and /sys.
//!
//! They travel from the host to the program as lines `NAME=VALUE`, in the variable [`VARIABLE`]: a form that needs no
//! parser, as in os-release(5). A value never holds a line's end.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The environment variable that holds the host's facts.
pub const VARIABLE: &str = "MOAT_HELLO_HOST";

/// One fact. An empty value could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about, such as `hostname`.
    pub name: String,
    /// What was found.
    pub value: String,
}

/// The identity of the running kernel: the same in every container of a machine, another in a virtual machine.
pub const BOOT: &str = "boot id";

/// Reads all facts of the calling process.
pub fn collect() -> Vec<Fact> {
    let status = read("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let facts = [
        ("process id", field("Pid")),
        ("user and group", format!("{}:{}", first(&field("Uid")), first(&field("Gid")))),
        ("user ids", id_map("/proc/self/uid_map")),
        ("group ids", id_map("/proc/self/gid_map")),
        ("hostname", read("/proc/sys/kernel/hostname")),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        (BOOT, read("/proc/sys/kernel/random/boot_id")),
        ("root file system", root()),
        ("mounts", count(&read("/proc/self/mountinfo"), "mount")),
        ("processes", processes()),
        ("network", network()),
        ("sockets", sockets()),
        ("wall clock", wall_clock()),
        ("time since boot", since_boot()),
        ("processors", cpus(&field("Cpus_allowed_list"))),
        ("memory", memory(&read("/proc/meminfo"))),
        ("memory limit", limit("memory", &["memory.max", "memory.limit_in_bytes"], bytes)),
        ("CPU limit", cpu_limit()),
        ("process limit", limit("pids", &["pids.max"], str::to_owned)),
        ("capabilities", capabilities(&field("CapEff"))),
        ("new privileges", if field("NoNewPrivs") == "1" { "never" } else { "allowed" }.to_owned()),
        ("system calls", seccomp(&field("Seccomp")).to_owned()),
    ];
    facts.into_iter().map(|(name, value)| Fact { name: name.to_owned(), value: clean(&value) }).collect()
}

/// The lines of the variable.
pub fn to_text(facts: &[Fact]) -> String {
    facts.iter().map(|fact| format!("{}={}\n", fact.name, fact.value)).collect()
}

/// The facts of such lines.
pub fn from_text(text: &str) -> Vec<Fact> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| Fact { name: name.to_owned(), value: clean(value) }).collect()
}

/// The value of a fact; empty when there is none.
pub fn value<'a>(facts: &'a [Fact], name: &str) -> &'a str {
    facts.iter().find(|fact| fact.name == name).map_or("", |fact| fact.value.as_str())
}

/// Where the program runs, told by what it sees and by what the host saw.
pub fn verdict(here: &[Fact], host: &[Fact]) -> String {
    let (own, other) = (value(here, BOOT), value(host, BOOT));
    match (own.is_empty() || other.is_empty(), own == other) {
        (true, _) => "The host's values are not known, so nothing can be compared.".to_owned(),
        (false, false) => {
            "This is a microVM: the kernel is its own, and the host's kernel is not reached by system calls."
                .to_owned()
        }
        (false, true) => {
            "This is a container: it shares the host's kernel, and sees a part of the host.".to_owned()
        }
    }
}

fn clean(text: &str) -> String {
    text.trim().chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

fn count(text: &str, what: &str) -> String {
    match text.lines().count() {
        0 => String::new(),
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

/// `0 is 100000 outside, 65536 ids`, or `as outside`.
fn id_map(path: &str) -> String {
    let text = read(path);
    let lines: Vec<Vec<u64>> = text
        .lines()
        .map(|line| line.split_whitespace().filter_map(|number| number.parse().ok()).collect())
        .collect();
    match lines.as_slice() {
        [] => String::new(),
        [line] if line.as_slice() == [0, 0, u64::from(u32::MAX)] => "as outside".to_owned(),
        lines => {
            let shown = lines.iter().filter_map(|line| match line.as_slice() {
                [inside, outside, 1] => Some(format!("{inside} is {outside}")),
                [inside, outside, count] => Some(format!("{inside} is {outside}, {count} ids")),
                _ => None,
            });
            shown.collect::<Vec<_>>().join("; ")
        }
    }
}

fn root() -> String {
    let text = read("/proc/self/mountinfo");
    let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
    let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
    let options = line.split(' ').nth(5).unwrap_or_default();
    let access = if options.split(',').any(|option| option == "ro") { "read-only" } else { "writable" };
    if kind.is_empty() { String::new() } else { format!("{kind}, {access}") }
}

fn processes() -> String {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let number = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_number)).count();
    if number == 0 { String::new() } else { format!("{number} visible") }
}

fn network() -> String {
    let text = read("/proc/self/net/dev");
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    let shown: Vec<&str> = names.iter().take(4).copied().collect();
    match names.len().saturating_sub(shown.len()) {
        0 => shown.join(" "),
        more => format!("{} and {more} more", shown.join(" ")),
    }
}

/// Sockets of the network that the process is in, whoever has them.
fn sockets() -> String {
    let count = |name: &str| {
        let text = read(&format!("/proc/self/net/{name}"));
        // The first line names the columns.
        text.lines().count().checked_sub(1)
    };
    let kinds = [("TCP", ["tcp", "tcp6"]), ("UDP", ["udp", "udp6"]), ("unix", ["unix", "-"])];
    let shown = kinds.iter().filter_map(|(kind, files)| {
        let found: Vec<usize> = files.iter().filter_map(|file| count(file)).collect();
        (!found.is_empty()).then(|| format!("{} {kind}", found.iter().sum::<usize>()))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The time of day, UTC. Seconds are enough: the two are read one after the other.
fn wall_clock() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

fn since_boot() -> String {
    let text = read("/proc/uptime");
    let Ok(seconds) = text.split('.').next().unwrap_or_default().parse::<u64>() else { return String::new() };
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn cpus(allowed: &str) -> String {
    let mut number = 0u64;
    for part in allowed.split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (Ok(low), Ok(high)) = (low.parse::<u64>(), high.parse::<u64>()) else {
            return allowed.to_owned();
        };
        number += high.saturating_sub(low) + 1;
    }
    if number == 0 { String::new() } else { format!("{number} ({allowed})") }
}

fn memory(meminfo: &str) -> String {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| size(kib * 1024)).unwrap_or_default()
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, factor) in units {
        if bytes >= factor {
            let tenths = bytes / (factor / 10).max(1);
            return if tenths.is_multiple_of(10) || tenths >= 1000 {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} bytes")
}

fn bytes(text: &str) -> String {
    // Version 1 says "none" by the largest number of whole pages.
    match text.parse::<u64>() {
        Ok(number) if number < 1 << 60 => size(number),
        _ => "none".to_owned(),
    }
}

/// The folders in which the group of a controller may show, the group's own first.
fn group_folders(controller: &str) -> Vec<String> {
    let text = read("/proc/self/cgroup");
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_end_matches('/');
        if names.is_empty() {
            folders.push(format!("/sys/fs/cgroup{path}"));
            folders.push("/sys/fs/cgroup".to_owned());
        } else if names.split(',').any(|name| name == controller) {
            folders.insert(0, format!("/sys/fs/cgroup/{names}"));
            folders.insert(0, format!("/sys/fs/cgroup/{names}{path}"));
        }
    }
    folders
}

fn limit(controller: &str, files: &[&str], show: impl Fn(&str) -> String) -> String {
    for folder in group_folders(controller) {
        for file in files {
            let text = read(&format!("{folder}/{file}"));
            match text.trim() {
                "" => {}
                "max" => return "none".to_owned(),
                value => return show(value),
            }
        }
    }
    String::new()
}

fn cpu_limit() -> String {
    for folder in group_folders("cpu") {
        let modern = read(&format!("{folder}/cpu.max"));
        let old = [read(&format!("{folder}/cpu.cfs_quota_us")), read(&format!("{folder}/cpu.cfs_period_us"))];
        let words: Vec<&str> = if modern.is_empty() {
            old.iter().map(|text| text.trim()).collect()
        } else {
            modern.split_whitespace().collect()
        };
        match words.as_slice() {
            ["max" | "-1", _] => return "none".to_owned(),
            [quota, period] => {
                let (Ok(quota), Ok(period)) = (quota.parse::<u64>(), period.parse::<u64>()) else { continue };
                let hundredths = quota * 100 / period.max(1);
                return format!("{}.{:02} processors", hundredths / 100, hundredths % 100);
            }
            _ => {}
        }
    }
    String::new()
}

fn capabilities(mask: &str) -> String {
    match u64::from_str_radix(mask, 16) {
        Err(_) => String::new(),
        Ok(0) => "none".to_owned(),
        Ok(bits) => format!("{} of 41 ({bits:x})", bits.count_ones()),
    }
}

fn seccomp(mode: &str) -> &'static str {
    match mode {
        "0" => "not filtered",
        "1" => "strict",
        "2" => "filtered",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_its_facts() {
        let facts = collect();
        assert_eq!(value(&facts, "process id"), std::process::id().to_string());
        for name in
            ["hostname", "kernel", BOOT, "mounts", "processes", "processors", "memory", "system calls"]
        {
            assert!(!value(&facts, name).is_empty(), "{name} is empty");
        }
        assert_eq!(from_text(&to_text(&facts)), facts);
    }

    #[test]
    fn the_same_kernel_is_a_container() {
        let boot = |id: &str| vec![Fact { name: BOOT.to_owned(), value: id.to_owned() }];
        assert!(verdict(&boot("a"), &boot("a")).contains("container"));
        assert!(verdict(&boot("a"), &boot("b")).contains("microVM"));
        assert!(verdict(&boot("a"), &[]).contains("not known"));
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(100), "100 bytes");
        assert_eq!(bytes("9223372036854771712"), "none");
        assert_eq!(cpus("0-3,7"), "5 (0-3,7)");
        assert_eq!(capabilities("00000000a80425fb"), "14 of 41 (a80425fb)");
        assert_eq!(clean("a\nb\u{1b}[31m"), "a b [31m");
    }
}
