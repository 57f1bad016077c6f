//! JSON Schema of the manifests, written from the same tables that the parser checks against.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    keys,
    rules::Rule,
    shape::{Field, Shape, Table},
};

/// JSON Schema (2020-12) of `agent.yaml`.
pub fn agent_schema() -> Value {
    document(&keys::AGENT, "agent.dev/v1")
}

/// JSON Schema (2020-12) of `fleet.yaml`.
pub fn fleet_schema() -> Value {
    document(&keys::FLEET, "volary.dev/v1")
}

fn document(table: &'static Table, api_version: &str) -> Value {
    let mut definitions = BTreeMap::new();
    let mut schema = object(table, &mut definitions);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(table.name);
    schema["properties"]["apiVersion"]["const"] = json!(api_version);
    schema["properties"]["kind"]["const"] = json!(table.name);
    schema["$defs"] = json!(definitions);
    schema
}

type Definitions = BTreeMap<&'static str, Value>;

fn object(table: &'static Table, definitions: &mut Definitions) -> Value {
    let properties: Map<String, Value> = table
        .fields
        .iter()
        .map(|field| (field.key.to_owned(), property(field, definitions)))
        .collect();
    let required: Vec<_> = table
        .fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.key)
        .collect();
    let mut schema = json!({
        "type": "object",
        "description": table.doc,
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn property(field: &'static Field, definitions: &mut Definitions) -> Value {
    let mut schema = shape(&field.shape, definitions);
    schema["description"] = json!(field.doc);
    schema
}

fn shape(shape: &'static Shape, definitions: &mut Definitions) -> Value {
    match shape {
        Shape::Text(rule) => text(rule),
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Int(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Shape::Number(low, high) => json!({ "type": "number", "minimum": low, "maximum": high }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::List(item) => json!({ "type": "array", "items": self::shape(item, definitions) }),
        Shape::Map(_, value) => {
            json!({ "type": "object", "additionalProperties": self::shape(value, definitions) })
        }
        Shape::Object(table) => reference(table, definitions),
        Shape::Either(shapes) => {
            let forms: Vec<_> = shapes
                .iter()
                .map(|form| self::shape(form, definitions))
                .collect();
            json!({ "anyOf": forms })
        }
        Shape::Any => json!({}),
    }
}

/// A reference to a table, which is defined once; it may refer to itself.
fn reference(table: &'static Table, definitions: &mut Definitions) -> Value {
    if !definitions.contains_key(table.name) {
        definitions.insert(table.name, Value::Null);
        let schema = object(table, definitions);
        definitions.insert(table.name, schema);
    }
    json!({ "$ref": format!("#/$defs/{}", table.name) })
}

fn text(rule: &Rule) -> Value {
    let mut schema = match rule.scalar {
        true => json!({ "type": ["string", "number", "boolean"] }),
        false => json!({ "type": "string" }),
    };
    if !rule.example.is_empty() {
        schema["examples"] = json!([rule.example]);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every table has a name of its own, or one would stand for another in the schema.
    #[test]
    fn table_names_are_unique_and_examples_pass_their_own_rule() {
        fn walk(shape: &'static Shape, seen: &mut BTreeMap<&'static str, *const Table>) {
            match shape {
                Shape::Text(rule) if !rule.example.is_empty() => {
                    assert_eq!((rule.check)(rule.example), Ok(()))
                }
                Shape::List(inner) | Shape::Map(_, inner) => walk(inner, seen),
                Shape::Either(shapes) => shapes.iter().for_each(|shape| walk(shape, seen)),
                Shape::Object(table) => match seen.insert(table.name, *table) {
                    Some(other) => assert_eq!(other, *table as *const Table, "{}", table.name),
                    None => table
                        .fields
                        .iter()
                        .for_each(|field| walk(&field.shape, seen)),
                },
                _ => {}
            }
        }
        let mut seen = BTreeMap::new();
        for table in [&keys::AGENT, &keys::FLEET] {
            table
                .fields
                .iter()
                .for_each(|field| walk(&field.shape, &mut seen));
        }
    }

    #[test]
    fn every_reference_is_defined() {
        for schema in [agent_schema(), fleet_schema()] {
            let text = schema.to_string();
            for part in text.split("#/$defs/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schema["$defs"][name].is_object(), "{name}");
            }
        }
    }
}
