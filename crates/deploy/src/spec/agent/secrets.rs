//! `spec.secrets` of an agent, looked up.

use volary_kernel::secret::Secret;

use crate::spec::{
    codes,
    context::Cx,
    model::{SecretSpec, SecretTarget},
    view::View,
};

use super::environment::{env_secret, fits_variable, from_file, reserved, variable_of};

impl SecretTarget {
    /// The variable that holds the file's path, or the secret itself.
    pub fn variable(&self) -> &str {
        match self {
            Self::File { variable } | Self::Env { variable } => variable,
        }
    }
}

/// How the agent gets a secret: `api-key` as the file of `API_KEY_FILE`, or as `API_KEY`.
pub(super) fn secret_target(item: View<'_>) -> Option<SecretTarget> {
    let variable = variable_of(item.get("name").text()?);
    Some(match item.get("as").text() {
        Some("env") => SecretTarget::Env { variable },
        _ => SecretTarget::File {
            variable: format!("{variable}_FILE"),
        },
    })
}

pub(super) fn read(list: View<'_>, cx: &mut Cx<'_>) -> Vec<SecretSpec> {
    let mut secrets: Vec<SecretSpec> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for item in list.items() {
        let (Some(name), Some(target)) = (item.get("name").string(), secret_target(item)) else {
            continue;
        };
        let span = item.get("name").span();
        let variable = target.variable().to_owned();
        if seen.contains(&variable) {
            cx.report(
                &codes::DUPLICATE_ITEM,
                span,
                format!("variable {variable} would hold two secrets"),
            );
            continue;
        }
        seen.push(variable.clone());
        reserved(&variable, span, cx);
        if let SecretTarget::Env { variable } = &target {
            let span = item.get("as").span();
            let message =
                format!("secret `{name}` is put in the environment, where others may see it");
            let warning = cx.at(&codes::SECRET_IN_ENVIRONMENT, span, message);
            cx.push(warning.hint(format!(
                "without `as: env` it is a file whose path is in {variable}_FILE"
            )));
        }
        let Some(value) = secret_value(item, &name, cx) else {
            continue;
        };
        let as_file = matches!(target, SecretTarget::File { .. });
        if as_file || fits_variable(&name, value.expose(), span, cx) {
            secrets.push(SecretSpec {
                name,
                value,
                target,
            });
        }
    }
    secrets
}

/// Keys that go with each `from` of a secret.
const SECRET_WITH: [(&str, &[&str]); 4] = [
    ("env", &["envKey"]),
    ("file", &["path"]),
    ("secret", &["secretName", "secretKey"]),
    ("kubernetes-secret", &["secretName", "secretKey"]),
];

fn secret_value(item: View<'_>, name: &str, cx: &mut Cx<'_>) -> Option<Secret> {
    let from = item.get("from").text()?;
    let allowed = SECRET_WITH
        .iter()
        .find(|(word, _)| *word == from)
        .map(|(_, keys)| *keys)?;
    for (key, _) in item.pairs() {
        if !allowed.contains(&key.text.as_str())
            && !matches!(key.text.as_str(), "name" | "from" | "as")
        {
            cx.report(
                &codes::CHOICE,
                key.span,
                format!("`{}` has no effect with `from: {from}`", key.text),
            );
        }
    }
    match from {
        "env" => {
            let key = item
                .get("envKey")
                .string()
                .unwrap_or_else(|| variable_of(name));
            env_secret(name, &key, item.get("from").span(), cx)
        }
        "file" => {
            let text = from_file(item.get("path"), item, cx)?;
            Some(cx.guard(Secret::new(text), item.get("path").span()))
        }
        _ => {
            let store = item.get("secretName");
            if !store.is_present() {
                let message = format!("`from: {from}` needs a `secretName`");
                cx.report(&codes::MISSING_KEY, item.get("from").span(), message);
            }
            let key = item.get("secretKey").text().unwrap_or(name);
            cx.fleet_secret(store.text()?, key, store.span())
        }
    }
}
