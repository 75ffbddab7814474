//! The engine of an ordinary user.

/// Whether this process is root only within a user namespace.
pub fn is_inside() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everything(&map))
}

/// Whether a `uid_map` is that of the initial user namespace: every id maps to itself.
fn maps_everything(map: &str) -> bool {
    let fields: Vec<u64> = map.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    fields == [0, 0, u64::from(u32::MAX)]
}
