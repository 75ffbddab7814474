//! Two hundred on one bridge.

use moat_tests::{HOST, NetworkHost as Host, OUTSIDE, sh};

#[test]
fn two_hundred_with_three_ports_each() {
    const COUNT: u16 = 200;
    let host = Host::new();
    let script = "for port in 80 81 82; do while true; do echo $HOSTNAME | nc -l -p $port; done & done; wait";
    for number in 0..COUNT {
        let (name, first) = (format!("w{number}"), 10_000 + 3 * number);
        let ports = format!("{first}-{}:80-82", first + 2);
        let args = ["run", "-d", "--name", &name, "-p", &ports, "-e", &format!("HOSTNAME={name}"), "busybox"];
        host.moat.call(&[&args[..], &["sh", "-c", script]].concat()).success();
    }
    // All 600 from the outside, as many as possible at once.
    let asked = host.outside().run("python3", &["-c", ASK, HOST, "10000", &(3 * COUNT).to_string()]);
    assert!(asked.status.success(), "{asked:?}");
    let answers = String::from_utf8(asked.stdout).unwrap();
    let expected: Vec<String> = (0..3 * COUNT).map(|port| format!("w{}", port / 3)).collect();
    assert_eq!(answers.lines().collect::<Vec<_>>(), expected);
    // Three ports in a row are one element.
    assert_eq!(
        sh("nft list map inet moat ranges4").matches(" : 172.17.").count()
            + sh("nft list map inet moat ports4").matches(" : 172.17.").count(),
        usize::from(3 * COUNT)
    );
    let ids = host.moat("ps -q");
    assert_eq!(ids.lines().count(), usize::from(COUNT));
    host.moat(&format!("rm -f {}", ids.replace('\n', " ")));
    host.nothing_left();
    let _ = OUTSIDE;
}

/// Asks each port until its server is there; prints the answers in order.
const ASK: &str = r#"
import socket, sys, time
host, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for port in range(first, first + count):
    while True:
        try:
            with socket.create_connection((host, port)) as s:
                text = s.recv(100).decode().strip()
            if text:
                print(text)
                break
        except OSError:
            pass
        time.sleep(0.01)
"#;
