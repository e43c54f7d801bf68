//! MessagePack as JSON and back, without the types of the protocol: bin is `{"$bin": "hex"}`.

#![expect(clippy::unwrap_used, reason = "hex of a vector is hex")]

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
    ser::Error as _,
};
use serde_json::{Map, Value, json};

/// A JSON value that reads from and writes as MessagePack.
#[derive(Debug)]
pub(crate) struct Plain(pub(crate) Value);

/// Bytes of lower-case hex.
pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "hex has two digits a byte");
    let digits: Vec<char> = hex.chars().collect();
    let digit = |digit: char| u8::try_from(digit.to_digit(16).unwrap()).unwrap();
    let byte = |pair: &[char]| pair.iter().fold(0, |byte, d| byte << 4 | digit(*d));
    digits.chunks(2).map(byte).collect()
}

/// Lower-case hex of bytes.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Value::Array(items) => serializer.collect_seq(items.iter().cloned().map(Plain)),
            Value::Object(map) => match map.get("$bin") {
                Some(Value::String(hex)) => serializer.serialize_bytes(&from_hex(hex)),
                Some(_) => Err(S::Error::custom("$bin is a string of hex")),
                None => serializer.collect_map(map.iter().map(|(k, v)| (k, Self(v.clone())))),
            },
            scalar => scalar.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Plain)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessagePack without extension types")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(json!(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(json!(text))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(json!({ "$bin": to_hex(bytes) }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Plain(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Plain(value))) = entries.next_entry()? {
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
