//! Many at once.

use std::collections::BTreeSet;

use crate::house::House;

pub(crate) fn eight_hundred_creates_side_by_side(house: &House) {
    let creators: Vec<_> = (0..16).map(|_| house.actor("create", &["50"]).spawn().unwrap()).collect();
    for mut creator in creators {
        assert!(creator.wait().unwrap().success());
    }
    let all = house.engine.list().unwrap();
    assert_eq!(all.len(), 800);
    let names: BTreeSet<&str> = all.iter().map(moat_engine::Workload::name).collect();
    assert_eq!(names.len(), 800);
    assert_eq!(house.check(false), Vec::<String>::new());
}

pub(crate) fn a_hundred_runs_at_once(house: &House) {
    let runs: Vec<_> = (0..100)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let mut actor = house.actor("run", &["sh", "-c", &script]);
            actor.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for (number, mut run) in runs.into_iter().enumerate() {
        assert_eq!(run.wait().unwrap().code(), Some(number as i32));
    }
    assert_eq!(house.leftovers(), Vec::<String>::new());
    assert_eq!(house.check(false), Vec::<String>::new());
}

pub(crate) fn one_name_is_given_once(house: &House) {
    let creators: Vec<_> =
        (0..20).map(|_| house.actor("create-named", &["wanted"]).spawn().unwrap()).collect();
    let made = creators
        .into_iter()
        .filter_map(|mut creator| creator.wait().unwrap().success().then_some(()))
        .count();
    assert_eq!(made, 1);
    assert_eq!(house.engine.list().unwrap().len(), 1);
    assert_eq!(house.check(false), Vec::<String>::new());
}
