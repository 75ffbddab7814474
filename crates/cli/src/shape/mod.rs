//! Objects in the shape that Docker's `inspect` gives them.

pub(crate) mod container;
pub(crate) mod host_config;
pub(crate) mod image;
pub(crate) mod network;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// A JSON document whose fields keep their order, since people read it.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    /// Anything without an order worth keeping.
    Plain(Value),
    /// Fields in order.
    Object(Vec<(&'static str, Document)>),
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<T: Into<Value>> From<T> for Document {
    fn from(value: T) -> Self {
        Self::Plain(value.into())
    }
}

/// A list as Go prints it: null when there is nothing.
pub(crate) fn list_or_null<T: Into<Value>>(items: impl IntoIterator<Item = T>) -> Value {
    let items: Vec<Value> = items.into_iter().map(Into::into).collect();
    if items.is_empty() { Value::Null } else { Value::Array(items) }
}

/// Go's sets: a map to empty objects, or null.
pub(crate) fn set_or_null<'a>(names: impl IntoIterator<Item = &'a String>) -> Value {
    let map: serde_json::Map<String, Value> =
        names.into_iter().map(|name| (name.clone(), Value::Object(serde_json::Map::new()))).collect();
    if map.is_empty() { Value::Null } else { Value::Object(map) }
}

/// A map of texts.
pub(crate) fn texts(map: &std::collections::BTreeMap<String, String>) -> Value {
    Value::Object(map.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect())
}

/// Makes a [`Document::Object`] of fields.
macro_rules! object {
    ($($name:literal: $value:expr),* $(,)?) => {
        $crate::shape::Document::Object(vec![$(($name, $crate::shape::Document::from($value))),*])
    };
}

pub(crate) use object;
