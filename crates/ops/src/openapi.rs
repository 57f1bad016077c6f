//! The OpenAPI document, made from the very routes that are mounted: what is not mounted is not in it, and the other
//! way round.

use std::collections::BTreeSet;

use bytes::Bytes;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    error::ErrorBody,
    section::{Reply, Route, Surface},
};

/// A route with the section that brought it.
pub(crate) struct Documented<'a> {
    pub(crate) section: &'static str,
    pub(crate) route: &'a Route,
}

/// The OpenAPI 3.1 document of `routes` plus the open ones of the server itself, as JSON.
pub(crate) fn document(version: &str, routes: &[Documented<'_>]) -> Bytes {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut schemas = SchemaGenerator::new(settings);
    let error = value(schemas.subschema_for::<ErrorBody>());
    let mut paths = open_paths(&mut schemas);
    for Documented { section, route } in routes {
        let method = route.method.as_str().to_ascii_lowercase();
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        let scheme = security_scheme(route.surface);
        match path.get_mut(&method) {
            // The same operation on the other surface: another token opens it, the rest is the same.
            Some(known) => known["security"]
                .as_array_mut()
                .into_iter()
                .for_each(|all| all.push(json!({scheme: []}))),
            None => path[method] = operation(section, route, scheme, &error, &mut schemas),
        }
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Volary",
            "version": version,
            "description": "Operator API (TCP, operator token) and link API (the agents' socket, link tokens).",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "operatorToken": {"type": "http", "scheme": "bearer", "description": "Operator API; GET also takes ?token="},
                "linkToken": {"type": "http", "scheme": "bearer", "description": "Link API; one token per replica"},
            },
        },
    });
    document.to_string().into()
}

fn value(schema: schemars::Schema) -> Value {
    schema.to_value()
}

const fn security_scheme(surface: Surface) -> &'static str {
    match surface {
        Surface::Operator => "operatorToken",
        Surface::Link => "linkToken",
    }
}

fn open_paths(schemas: &mut SchemaGenerator) -> Map<String, Value> {
    let health = value(schemas.subschema_for::<crate::api::HealthDocument>());
    let answer = |words: &str| json!({"description": words, "content": {"application/json": {"schema": health}}});
    let get = |id: &str, summary: &str, responses: Value| json!({"get": {"operationId": id, "tags": ["ops"], "summary": summary, "security": [], "responses": responses}});
    let well = json!({"200": answer("All is well"), "503": answer("Something is not; `checks` says what")});
    let metrics = json!({"200": {"description": "Prometheus text 0.0.4 or OpenMetrics 1.0, by Accept", "content": {
        "text/plain": {}, "application/openmetrics-text": {},
    }}});
    let mut paths = Map::new();
    paths.insert(
        "/health".into(),
        get("health", "Whether every loop turns", well.clone()),
    );
    paths.insert(
        "/ready".into(),
        get("ready", "Whether work can be taken", well),
    );
    paths.insert(
        "/metrics".into(),
        get("metrics", "Metrics of the node", metrics),
    );
    paths
}

fn operation(
    section: &str,
    route: &Route,
    scheme: &str,
    error: &Value,
    schemas: &mut SchemaGenerator,
) -> Value {
    let content = match route.reply {
        Reply::Unsaid => json!({"application/json": {}}),
        Reply::Json(schema) => json!({"application/json": {"schema": value(schema(schemas))}}),
        Reply::Media(media_type) => json!({media_type: {}}),
    };
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [section],
        "summary": route.summary,
        "security": if route.open.is_some() { json!([]) } else { json!([{scheme: []}]) },
        "responses": {
            "200": {"description": "Done", "content": content},
            "default": {"description": "Refused or failed", "content": {"application/json": {"schema": error}}},
        },
    });
    let parameters = parameters(route, schemas);
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = route.body {
        let schema = value(body(schemas));
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

/// `get /v1/parked/{id}` is `get_parked_id`.
fn operation_id(route: &Route) -> String {
    let words = route
        .path
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !matches!(*word, "" | "v1"));
    let words: Vec<&str> = words.collect();
    format!(
        "{}_{}",
        route.method.as_str().to_ascii_lowercase(),
        words.join("_")
    )
}

fn parameters(route: &Route, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = path_parameters(route.path).map(
        |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
    );
    let mut parameters: Vec<Value> = in_path.collect();
    let Some(query) = route.query else {
        return parameters;
    };
    let query = value(query(schemas));
    let required: BTreeSet<&str> = query["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, schema) in query["properties"].as_object().into_iter().flatten() {
        let required = required.contains(name.as_str());
        parameters
            .push(json!({"name": name, "in": "query", "required": required, "schema": schema}));
    }
    parameters
}

/// The names in braces of a path.
pub(crate) fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}
