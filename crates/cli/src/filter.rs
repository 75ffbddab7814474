//! `--filter KEY=VALUE`: values of one key are alternatives, keys and labels must all fit.

use std::collections::BTreeMap;

use crate::failure::{Failure, Result};

/// The filters that were given.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    values: BTreeMap<String, Vec<String>>,
}

impl Filters {
    /// Reads the filters; `known` are the keys that the command has.
    pub(crate) fn parse(filters: &[String], known: &[&str]) -> Result<Self> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for filter in filters.iter().filter(|filter| !filter.is_empty()) {
            let (key, value) = filter
                .split_once('=')
                .ok_or_else(|| Failure::new(format!("--filter {filter:?} should be KEY=VALUE")))?;
            let key = key.trim().to_lowercase();
            if !known.contains(&key.as_str()) {
                let keys = known.join(", ");
                return Err(Failure::new(format!("--filter {key:?} is not one of {keys}")));
            }
            values.entry(key).or_default().push(value.trim().to_owned());
        }
        Ok(Self { values })
    }

    /// The values of one key.
    pub(crate) fn of(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a key was not given, or one of its values fits.
    pub(crate) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.of(key).is_empty() || self.of(key).iter().any(|value| fits(value))
    }

    /// Whether labels have all that `label=NAME[=VALUE]` asks for, and nothing that `label!=` excludes.
    pub(crate) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wish: &String| match wish.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wish),
        };
        self.of("label").iter().all(has) && !self.of("label!").iter().any(has)
    }

    /// The one truth value of a key.
    pub(crate) fn truth(&self, key: &str) -> Result<Option<bool>> {
        let mut found = None;
        for value in self.of(key) {
            let truth = crate::flags::boolean(value)
                .map_err(|error| Failure::new(format!("--filter {key}={value}: {error}")))?;
            if found.is_some_and(|found| found != truth) {
                return Err(Failure::new(format!("--filter {key} is given as true and as false")));
            }
            found = Some(truth);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Filters;

    fn filters(words: &[&str]) -> super::Result<Filters> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Filters::parse(&words, &["name", "label", "label!", "dangling"])
    }

    #[test]
    fn alternatives_and_labels() {
        let found = filters(&["name=a", "name=b", "label=x", "label=y=1", "label!=z"]).unwrap();
        assert!(found.any("name", |value| value == "b") && !found.any("name", |value| value == "c"));
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert!(found.labels(&labels(&[("x", ""), ("y", "1")])));
        assert!(!found.labels(&labels(&[("x", ""), ("y", "2")])));
        assert!(!found.labels(&labels(&[("x", ""), ("y", "1"), ("z", "")])));
        assert!(filters(&[]).unwrap().any("name", |_| false));
    }

    #[test]
    fn what_is_refused() {
        assert!(filters(&["name"]).is_err());
        assert!(filters(&["color=red"]).is_err());
        assert!(filters(&["dangling=maybe"]).unwrap().truth("dangling").is_err());
        assert!(filters(&["dangling=1", "dangling=0"]).unwrap().truth("dangling").is_err());
        assert_eq!(filters(&["dangling=1", "dangling=true"]).unwrap().truth("dangling").unwrap(), Some(true));
    }
}
