//! containerd CVE-2024-40635: a user that can not be parsed, or overflows, becomes root.

use moat_tests::{Bundle, Container, Runtime};
use serde_json::{Value, json};

/// Numbers that look random and are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 24] = [
            "0",
            "1",
            "7",
            "00",
            "42",
            "65535",
            "65536",
            "2147483647",
            "2147483648",
            "4294967294",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "-",
            "+",
            ":",
            ":",
            " ",
            "root",
            "x",
            "e",
            ".",
            "\u{661}",
            "\n",
        ];
        let count = 1 + self.roll(4);
        (0..count).map(|_| PARTS[self.roll(PARTS.len())]).collect()
    }
}

/// The user and group that a text means, if it means any.
fn meaning(text: &str) -> Option<(u32, u32)> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.chars().all(|digit| digit.is_ascii_digit());
        let value = part.trim_start_matches('0');
        let value = if value.is_empty() { "0" } else { value };
        value.parse::<u32>().ok().filter(|value| digits && *value < u32::MAX)
    };
    match text.split_once(':') {
        None => number(text).map(|user| (user, 0)),
        Some((user, group)) => number(user).zip(number(group)),
    }
}

#[track_caller]
fn check(container: &Container<'_>, text: &str) {
    let flag = format!("--user={text}");
    let output = container.exec_with(&[&flag], &["/bin/sh", "-c", "echo $(id -u) $(id -g)"]);
    match meaning(text) {
        Some((user, group)) => assert_eq!(output.success(), format!("{user} {group}\n"), "{text:?}"),
        None => {
            assert!(output.failure().contains("--user"), "{text:?}: {output:?}");
            assert_eq!(output.stdout, "", "{text:?} ran");
        }
    }
}

#[test]
fn a_user_of_exec_is_what_it_says_or_an_error() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000000"]));
    for text in
        ["", ":", "0:", ":0", "root", "root:root", "4294967295", "0:4294967295", "4294967296", "-1", "1e3"]
    {
        check(&container, text);
    }
    for text in
        ["0x0", "٠", "1 ", " 1", "1\n", "1:1:1", "1,1", "99999999999999999999", "1000", "00001000", "1:2"]
    {
        check(&container, text);
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..200 {
        check(&container, &dice.text());
    }
}

fn not_ids() -> Vec<Value> {
    let texts =
        ["4294967296", "-1", "1e3", "1.5", "18446744073709551616", "\"0\"", "\"root\"", "null", "true", "[]"];
    let parsed = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    // The value that means "leave it as it is" to the kernel.
    parsed.chain([json!(u32::MAX)]).collect()
}

#[test]
fn an_id_of_a_configuration_is_a_number_or_an_error() {
    let runtime = Runtime::new();
    for value in not_ids() {
        for (pointer, value) in [
            ("/process/user/uid", value.clone()),
            ("/process/user/gid", value.clone()),
            ("/process/user/additionalGids", json!([value])),
        ] {
            let mut bundle = Bundle::shell("id");
            bundle.set(pointer, value.clone());
            let output = runtime.run(&bundle);
            assert!(output.code != 0 && output.stdout.is_empty(), "{pointer} = {value}: {output:?}");
        }
    }
}

#[test]
fn an_id_of_a_process_file_is_a_number_or_an_error() {
    let runtime = Runtime::new();
    let container = runtime.start(&Bundle::new(&["sleep", "1000000"]));
    let file = runtime.folder().join("process.json");
    let mut process = moat_tests::default_config()["process"].clone();
    process["args"] = json!(["/bin/id"]);
    for value in not_ids() {
        for field in ["uid", "gid"] {
            process["user"] = json!({ "uid": 5, "gid": 5 });
            process["user"][field] = value.clone();
            std::fs::write(&file, process.to_string()).unwrap();
            let output = container.exec_with(&["--process", file.to_str().unwrap()], &[]);
            assert!(output.code != 0 && output.stdout.is_empty(), "{field} = {value}: {output:?}");
        }
    }
}

#[test]
fn the_largest_ids_are_taken_as_they_are() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("echo $(id -u) $(id -g) $(id -G)");
    bundle.set(
        "/process/user",
        json!({ "uid": 4294967294_u32, "gid": 4294967293_u32, "additionalGids": [65536] }),
    );
    assert_eq!(runtime.run(&bundle).success(), "4294967294 4294967293 4294967293 65536\n");
}
