//! Any text as an image's passwd and group files, and as the name of a user: who comes out is who the files name, or
//! the number that was asked for; never root by accident, and never "no change".
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_engine::user::resolve;

/// A number as the kernel takes it.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value: u32 = if digits { text.parse().ok()? } else { return None };
    (value != u32::MAX).then_some(value)
}

fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.trim().split(':').collect())
}

fuzz_target!(|text: &str| {
    let mut parts = text.splitn(3, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (wanted, passwd, group) = (next(), next(), next());
    let mut wishes = wanted.split(' ');
    let wanted = wishes.next().unwrap_or_default();
    let further: Vec<String> = wishes.map(str::to_owned).collect();
    let found = match resolve(wanted, &further, passwd, group) {
        Ok(found) => found,
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.starts_with("user ") || sentence.starts_with("group "), "{sentence}");
            assert!(!wanted.is_empty() || !further.is_empty(), "root is always there: {sentence}");
            return;
        }
    };
    let (user, own_group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let users: Vec<_> = lines(passwd)
        .filter(|line| line.len() >= 6 && number(line[2]).is_some() && number(line[3]).is_some())
        .collect();
    let asked = if user.is_empty() { Some(0) } else { number(user) };
    let line = users
        .iter()
        .find(|line| !user.is_empty() && line[0] == user)
        .or_else(|| users.iter().find(|line| asked.is_some() && number(line[2]) == asked));
    match line {
        Some(line) => assert_eq!(Some(found.uid), number(line[2])),
        None => assert_eq!(Some(found.uid), asked),
    }

    let groups: Vec<_> = lines(group).filter(|line| line.len() >= 3 && number(line[2]).is_some()).collect();
    let named = |name: &str| {
        let line = groups.iter().find(|line| !name.is_empty() && line[0] == name);
        line.map_or_else(|| number(name), |line| number(line[2]))
    };
    let own =
        if own_group.is_empty() { line.map_or(Some(0), |line| number(line[3])) } else { named(own_group) };
    assert_eq!(Some(found.gid), own);
    let mut expected: Vec<u32> = further.iter().filter_map(|name| named(name)).collect();
    assert_eq!(expected.len(), further.len(), "a group that is not there was passed over");
    expected.push(found.gid);
    if let (Some(line), true) = (line, own_group.is_empty()) {
        let of = |group: &&Vec<&str>| {
            group.get(3).is_some_and(|list| list.split(',').any(|name| !name.is_empty() && name == line[0]))
        };
        expected.extend(groups.iter().filter(of).filter_map(|group| number(group[2])));
    }
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(found.groups, expected);
    assert!(found.groups.len() <= 65536 && !found.groups.contains(&u32::MAX));
    assert!(!found.home.is_empty());
});
