//! Machines and containers on the same networks.

use moat_tests::{HOST, Moat, OUTSIDE, Place, Wire, wait_until};

use super::run;

pub(crate) fn inside() {
    let wire = Wire::lay();
    let moat = Moat::with_machines();
    moat.call(&["network", "create", "--ipv6", "blue"]).success();
    let serving = |name: &str, flags: &[&str]| {
        let script = format!("while :; do echo from {name} | nc -l -p 80; done");
        let args =
            [&["run", "-d", "--name", name, "--network", "blue"], flags, &["busybox", "sh", "-c", &script]];
        moat.call(&args.concat()).success();
    };
    serving("box", &[]);
    serving("one", &["--isolation", "microvm", "-p", "8080:80", "--sysctl", "net.core.somaxconn=77"]);
    serving("two", &["--isolation", "microvm", "--add-host", "db:10.9.8.7", "--dns-search", "example.org"]);
    address(&moat);
    each_other(&moat);
    published(&wire);
    files_of_names(&moat);
    figures(&moat);
    coming_and_going(&moat);
    refusals(&moat);
    abandoned(&moat);
    moat.call(&["rm", "-f", "one", "box"]).success();
    assert_eq!(ask(&Place::host(), "127.0.0.1", 8080), None, "the port went with its workload");
    moat.call(&["network", "rm", "blue"]).success();
}

fn exec(moat: &Moat, name: &str, script: &str) -> String {
    moat.call(&["exec", name, "sh", "-c", script]).success().trim().to_owned()
}

fn on(moat: &Moat, name: &str, network: &str, field: &str) -> String {
    let state = moat.inspect(name)["NetworkSettings"]["Networks"][network][field].clone();
    state.as_str().unwrap_or_default().to_owned()
}

fn ask(place: &Place, address: &str, port: u16) -> Option<String> {
    let output = place.run("busybox", &["nc", "-w", "10", address, &port.to_string()]);
    let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The interface in the guest is what the host says it is.
fn address(moat: &Moat) {
    let seen =
        exec(moat, "one", "ip addr show eth0; ip route; cat /proc/sys/net/core/somaxconn; ls /sys/class/net");
    let expected = [
        format!("inet {}/16", on(moat, "one", "blue", "IPAddress")),
        format!("inet6 {}/64", on(moat, "one", "blue", "GlobalIPv6Address")),
        format!("link/ether {}", on(moat, "one", "blue", "MacAddress")),
        format!("default via {}", on(moat, "one", "blue", "Gateway")),
        "mtu 1500".to_owned(),
        "\n77\n".to_owned(),
    ];
    for text in expected {
        assert!(seen.contains(&text), "{text}: {seen}");
    }
    let alone = run(moat, &["--rm", "busybox", "ip", "addr"]);
    assert!(alone.success().contains("lo: <LOOPBACK,UP") && !alone.stdout.contains("eth0"), "{alone:?}");
}

fn each_other(moat: &Moat) {
    let names = ["box", "one", "two"];
    for from in names {
        for to in names {
            assert_eq!(exec(moat, from, &format!("nc {to} 80 </dev/null")), format!("from {to}"), "{from}");
        }
    }
    let six = on(moat, "box", "blue", "GlobalIPv6Address");
    exec(moat, "one", &format!("ping -c 1 {six}"));
}

fn published(wire: &Wire) {
    for (place, address) in [(Place::host(), "127.0.0.1"), (Place::host(), HOST), (wire.outside(), HOST)] {
        assert_eq!(ask(&place, address, 8080).as_deref(), Some("from one"), "{place:?} {address}");
    }
}

fn files_of_names(moat: &Moat) {
    let seen = exec(moat, "two", "cat /etc/hosts /etc/resolv.conf");
    let own = on(moat, "two", "blue", "IPAddress");
    for text in [
        "10.9.8.7\tdb",
        "search example.org",
        &format!("nameserver {}", on(moat, "two", "blue", "Gateway")),
        &own,
    ] {
        assert!(seen.contains(text), "{text}: {seen}");
    }
    // The way out, by the host's address.
    exec(moat, "two", &format!("ping -c 1 {OUTSIDE}"));
}

fn figures(moat: &Moat) {
    let stats = moat.call(&["stats", "--no-stream", "--format", "{{.NetIO}} {{.PIDs}}", "one"]);
    let text = stats.success().trim();
    assert!(!text.starts_with("0B / ") && !text.contains("/ 0B"), "{text}");
    // Those of the workload, not of the machine around it.
    let tasks: u32 = text.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((2..=4).contains(&tasks), "{text}");
}

fn coming_and_going(moat: &Moat) {
    let told = moat.call(&["network", "connect", "bridge", "one"]);
    assert!(told.failure().contains("is a microVM: it can join no network while it runs"), "{told:?}");
    moat.call(&["network", "disconnect", "blue", "two"]).success();
    let cut =
        moat.call(&["exec", "two", "ping", "-c", "1", "-W", "1", &on(moat, "box", "blue", "IPAddress")]);
    assert!(cut.code != 0, "{cut:?}");
    assert_ne!(moat.call(&["exec", "box", "nslookup", "two"]).code, 0);
    // At its next start it is where it was told to be.
    moat.call(&["stop", "-t", "0", "two"]).success();
    moat.call(&["network", "connect", "--alias", "zwei", "blue", "two"]).success();
    moat.call(&["network", "connect", "bridge", "two"]).success();
    moat.call(&["start", "two"]).success();
    assert_eq!(exec(moat, "box", "nc zwei 80 </dev/null"), "from two");
    let seen = exec(moat, "two", "ip addr; ip route");
    assert!(seen.contains(&on(moat, "two", "bridge", "IPAddress")) && seen.contains("eth1"), "{seen}");
    assert_eq!(seen.matches("default via").count(), 1, "{seen}");
}

/// A machine whose monitor was killed goes on, and can be ended with all that it had.
fn abandoned(moat: &Moat) {
    let machine = moat.inspect("two")["State"]["Pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{machine}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    let parent = rustix::process::Pid::from_raw(parent.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
    wait_until(|| !std::path::Path::new(&format!("/proc/{}", parent.as_raw_nonzero())).exists());
    assert_eq!(moat.status("two"), "running");
    assert_eq!(exec(moat, "two", "echo up"), "up");
    let taps = || Place::host().sh("ip -d link").matches("tun type tap").count();
    // Its program is told, as if the monitor were there, and is killed when it does not mind.
    let before = taps();
    moat.call(&["stop", "-t", "1", "two"]).success();
    assert_eq!(moat.status("two"), "exited");
    moat.call(&["rm", "two"]).success();
    assert!(taps() < before, "{before} taps");
    assert!(!std::path::Path::new(&format!("/proc/{machine}")).exists());
}

fn refusals(moat: &Moat) {
    for mode in ["host", "container:box"] {
        let args = ["run", "--rm", "--isolation", "microvm", "--network", mode, "busybox", "true"];
        let told = moat.call(&args);
        assert!(told.failure().contains("it can not share those of others"), "{told:?}");
    }
    let told = moat.call(&["run", "--rm", "--network", "container:one", "busybox", "true"]);
    assert!(told.failure().contains("is a microVM"), "{told:?}");
    let taken = moat.call(&["run", "--rm", "--isolation", "microvm", "-p", "8080:80", "busybox", "true"]);
    assert!(taken.failure().contains("8080"), "{taken:?}");
}
