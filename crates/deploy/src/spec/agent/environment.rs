//! Environment variables and secrets, looked up.
//!
//! Where a value comes from:
//!
//! | written | value |
//! |---|---|
//! | `value: x` | the text as written |
//! | `from: env`, `envKey: K` | variable `K` (or the same name) where Volary runs, else `defaultValue` |
//! | `from: secret`, `secretName: S`, `secretKey: K` | `spec.secrets.S.K` of the fleet |
//! | `from: secret` | the variable of the same name where Volary runs, kept as a secret |
//! | `from: config`, `configKey: K` | `spec.config.K` of the agent, else of the fleet, else `defaultValue` |
//! | `from: configmap`, `configMapName: G`, `configMapKey: K` | `spec.config.G.K` of the fleet, else `defaultValue` |
//! | `from: file`, `path: P` | the file's text without one line end at its end |

use volary_kernel::secret::Secret;

use crate::spec::{
    codes,
    context::Cx,
    model::{EnvValue, EnvVar, ServiceSpec},
    source::{Place, Span},
    view::View,
};

use super::{Override, secrets::secret_target};

/// A variable and its place.
#[derive(Clone)]
pub(crate) struct Variable {
    pub var: EnvVar,
    pub at: Place,
}

/// The agent's variables, with those of the fleet's entry added or put in their place.
pub(super) fn read(spec: View<'_>, over: &Override, cx: &mut Cx<'_>) -> Vec<EnvVar> {
    let mut variables = variables(spec.get("environment"), spec.get("config"), cx);
    for other in &over.environment {
        match variables
            .iter_mut()
            .find(|variable| variable.var.name == other.var.name)
        {
            Some(variable) => variable.clone_from(other),
            None => variables.push(other.clone()),
        }
    }
    for secret in spec.get("secrets").items() {
        let Some(variable) = secret_target(secret).map(|target| target.variable().to_owned())
        else {
            continue;
        };
        if let Some(other) = variables.iter().find(|other| other.var.name == variable) {
            let message =
                format!("the secret's variable {variable} is also set under `environment`");
            let problem = cx.at(&codes::DUPLICATE_ITEM, secret.get("name").span(), message);
            cx.push(problem.related(&other.at.file, other.at.span, "it is set here"));
        }
    }
    variables.into_iter().map(|variable| variable.var).collect()
}

/// The variables of a list, names unique. `config` is the agent's own, which goes before the fleet's.
pub(crate) fn variables(list: View<'_>, config: View<'_>, cx: &mut Cx<'_>) -> Vec<Variable> {
    let mut variables: Vec<Variable> = Vec::new();
    for item in list.items() {
        let Some(name) = item.get("name").text() else {
            continue;
        };
        let span = item.get("name").span();
        if let Some(other) = variables.iter().find(|variable| variable.var.name == name) {
            let problem = cx.at(
                &codes::DUPLICATE_ITEM,
                span,
                format!("variable `{name}` is set a second time"),
            );
            let problem = problem.related(&other.at.file, other.at.span, "it is first set here");
            cx.push(problem);
            continue;
        }
        reserved(name, span, cx);
        if let Some(value) = value(item, name, config, cx) {
            let at = cx.place(span);
            variables.push(Variable {
                var: EnvVar {
                    name: name.to_owned(),
                    value,
                },
                at,
            });
        }
    }
    variables
}

/// Variables that Volary itself sets are not for manifests.
pub(super) fn reserved(name: &str, span: Span, cx: &mut Cx<'_>) {
    if name.starts_with("VOLARY_") {
        let message =
            format!("variables that begin with VOLARY_ are set by Volary, found `{name}`");
        cx.report(&codes::BAD_VARIABLE, span, message);
    }
}

/// Keys that go with each `from`.
const WITH: [(&str, &[&str]); 5] = [
    ("env", &["envKey", "defaultValue"]),
    ("secret", &["secretName", "secretKey"]),
    ("config", &["configKey", "defaultValue"]),
    (
        "configmap",
        &["configMapName", "configMapKey", "defaultValue"],
    ),
    ("file", &["path"]),
];

fn value(item: View<'_>, name: &str, config: View<'_>, cx: &mut Cx<'_>) -> Option<EnvValue> {
    let (value, from) = (item.get("value"), item.get("from"));
    let allowed: &[&str] = match (value.is_present(), from.is_present()) {
        (true, true) => {
            let problem = cx.at(
                &codes::CHOICE,
                from.key(),
                format!("variable `{name}` has both `value` and `from`"),
            );
            cx.push(problem.hint("keep one of the two"));
            return None;
        }
        (false, false) => {
            let problem = cx.at(
                &codes::CHOICE,
                item.span(),
                format!("variable `{name}` has neither `value` nor `from`"),
            );
            cx.push(problem.hint("write `value: \"\"` for an empty one"));
            return None;
        }
        (true, false) => &[],
        (false, true) => WITH
            .iter()
            .find(|(word, _)| Some(*word) == from.text())
            .map(|(_, keys)| *keys)?,
    };
    for (key, _) in item.pairs() {
        if !allowed.contains(&key.text.as_str())
            && WITH
                .iter()
                .any(|(_, keys)| keys.contains(&key.text.as_str()))
        {
            let with = from.text().map_or("with `value`".to_owned(), |from| {
                format!("with `from: {from}`")
            });
            cx.report(
                &codes::CHOICE,
                key.span,
                format!("`{}` has no effect {with}", key.text),
            );
        }
    }
    let found = match from.text() {
        None => literal(name, value.text()?, value.span(), cx),
        Some("env") => from_env(item, name, cx)?,
        Some("secret") => EnvValue::Secret(from_secret(item, name, cx)?),
        Some("config") => from_config(item, name, config, cx)?,
        Some("configmap") => from_configmap(item, name, cx)?,
        Some(_) => EnvValue::Plain(from_file(item.get("path"), item, cx)?),
    };
    fits_variable(name, found.expose(), item.get("name").span(), cx).then_some(found)
}

/// Whether the system can hand the value over; else it is reported.
pub(super) fn fits_variable(name: &str, value: &str, span: Span, cx: &mut Cx<'_>) -> bool {
    let fits = !value.contains('\0');
    if !fits {
        let message = format!("the value of {name} holds a NUL character, which no variable can");
        cx.report(&codes::BAD_VARIABLE, span, message);
    }
    fits
}

fn literal(name: &str, text: &str, span: Span, cx: &mut Cx<'_>) -> EnvValue {
    if text.contains("${") {
        let problem = cx.at(
            &codes::NOT_EXPANDED,
            span,
            "`${…}` is not expanded: the agent gets this text as it stands",
        );
        cx.push(problem.hint("to copy a variable, use `from: env` with `envKey`"));
    } else if sounds_secret(name) && !text.is_empty() {
        let problem = cx.at(
            &codes::SECRET_IN_TEXT,
            span,
            format!("`{name}` sounds like a secret, and its value is in the manifest"),
        );
        cx.push(problem.hint("use `from: secret`"));
    }
    EnvValue::Plain(text.to_owned())
}

/// Whether a variable's name says that its value is a secret.
fn sounds_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let has = |words: &[&str]| upper.split('_').any(|part| words.contains(&part));
    has(&[
        "TOKEN",
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "CREDENTIALS",
        "APIKEY",
    ]) || (has(&["KEY"]) && has(&["API", "ACCESS", "PRIVATE", "SIGNING", "ENCRYPTION"]))
}

fn from_env(item: View<'_>, name: &str, cx: &mut Cx<'_>) -> Option<EnvValue> {
    let key = item.get("envKey").text().unwrap_or(name);
    let span = item.get("from").span();
    let found = (cx.options.env)(key).or_else(|| item.get("defaultValue").string());
    match found {
        Some(text) => {
            if sounds_secret(name) || sounds_secret(key) {
                let problem = cx.at(
                    &codes::SECRET_IN_TEXT,
                    span,
                    format!("`{name}` sounds like a secret, but is not treated as one"),
                );
                cx.push(
                    problem.hint("use `from: secret`, which keeps it out of logs and `inspect`"),
                );
            }
            Some(EnvValue::Plain(text))
        }
        None => {
            let problem = cx.at(
                &codes::VARIABLE_MISSING,
                span,
                format!("environment variable {key} is not set"),
            );
            cx.push(problem.hint(format!("set {key}, or add a `defaultValue`")));
            None
        }
    }
}

fn from_secret(item: View<'_>, name: &str, cx: &mut Cx<'_>) -> Option<Secret> {
    let span = item.get("from").span();
    let store = item.get("secretName");
    let secret = if let Some(store_name) = store.text() {
        let key = item.get("secretKey").text().unwrap_or(name);
        cx.fleet_secret(store_name, key, store.span())?
    } else if item.get("secretKey").is_present() {
        let message = "`secretKey` needs a `secretName`";
        cx.report(&codes::MISSING_KEY, item.get("secretKey").key(), message);
        return None;
    } else {
        env_secret(name, name, span, cx)?
    };
    let message = format!("`{name}` is a secret in the environment, where others may see it");
    let warning = cx.at(&codes::SECRET_IN_ENVIRONMENT, span, message);
    cx.push(warning.hint("`spec.secrets` hands it over as a file instead"));
    Some(secret)
}

/// The secret in the variable `key` where Volary runs.
pub(super) fn env_secret(name: &str, key: &str, span: Span, cx: &mut Cx<'_>) -> Option<Secret> {
    match (cx.options.env)(key).filter(|value| !value.is_empty()) {
        Some(value) => Some(cx.guard(Secret::new(value), span)),
        None => {
            let message =
                format!("secret `{name}` not found: environment variable {key} is not set");
            let problem = cx.at(&codes::SECRET_MISSING, span, message);
            cx.push(problem.hint(format!("set {key}, or declare it under `spec.secrets` of fleet.yaml and name it with `secretName`")));
            None
        }
    }
}

fn from_config(item: View<'_>, name: &str, config: View<'_>, cx: &mut Cx<'_>) -> Option<EnvValue> {
    let key = item.get("configKey").text().unwrap_or(name);
    let own = config.get(key).string();
    let found = own
        .or_else(|| cx.definitions.values.get(key).cloned())
        .or_else(|| item.get("defaultValue").string());
    if found.is_none() {
        let problem = cx.at(
            &codes::CONFIG_MISSING,
            item.get("from").span(),
            format!("config value `{key}` is not declared"),
        );
        cx.push(problem.hint(format!(
            "add `{key}` under `spec.config` of this manifest or of fleet.yaml"
        )));
    }
    found.map(EnvValue::Plain)
}

fn from_configmap(item: View<'_>, name: &str, cx: &mut Cx<'_>) -> Option<EnvValue> {
    let group = item.get("configMapName");
    if !group.is_present() {
        cx.report(
            &codes::MISSING_KEY,
            item.get("from").span(),
            "`from: configmap` needs a `configMapName`",
        );
    }
    let group_name = group.text()?;
    let key = item.get("configMapKey").text().unwrap_or(name);
    let declared = cx
        .definitions
        .groups
        .get(group_name)
        .and_then(|group| group.get(key))
        .cloned();
    let found = declared.or_else(|| item.get("defaultValue").string());
    if found.is_none() {
        let message = format!("config value `{group_name}/{key}` is not declared");
        let problem = cx.at(&codes::CONFIG_MISSING, group.span(), message);
        cx.push(problem.hint(format!(
            "add to fleet.yaml: spec.config: {{{group_name}: {{{key}: value}}}}"
        )));
    }
    found.map(EnvValue::Plain)
}

pub(super) fn from_file(path: View<'_>, item: View<'_>, cx: &mut Cx<'_>) -> Option<String> {
    if !path.is_present() {
        cx.report(
            &codes::MISSING_KEY,
            item.get("from").span(),
            "`from: file` needs a `path`",
        );
    }
    let shown = path.text()?;
    let full = cx.resolve(shown);
    cx.value_of_file(&full, shown, path.span())
}

// --- Services --------------------------------------------------------------------------------

/// Adds `<NAME>_HOST` and `<NAME>_PORT` of each service that the manifest does not set itself: processes share loopback.
pub(super) fn with_services(mut environment: Vec<EnvVar>, services: &[ServiceSpec]) -> Vec<EnvVar> {
    for service in services {
        let prefix = variable_of(&service.name);
        for (suffix, value) in [
            ("HOST", "127.0.0.1".to_owned()),
            ("PORT", service.port.to_string()),
        ] {
            let name = format!("{prefix}_{suffix}");
            let usable = !prefix.starts_with(|first: char| first.is_ascii_digit());
            if usable && !environment.iter().any(|variable| variable.name == name) {
                environment.push(EnvVar {
                    name,
                    value: EnvValue::Plain(value),
                });
            }
        }
    }
    environment
}

/// `API_KEY` for `api-key`.
pub(super) fn variable_of(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}
