//! What a backend can make true. A setting it cannot honour is an error; one without effect is a named warning.

use crate::spec::{
    codes::{self, CodeInfo},
    context::Cx,
    model::{Execution, NetworkMode},
    source::Span,
    view::View,
};

use super::Settings;

/// A setting, the path to it below `spec`, and why a process does not have it.
const PROCESS_CANNOT: [(&[&str], &str); 5] = [
    (
        &["volumes"],
        "a process sees the host's own files: name the paths it needs directly",
    ),
    (
        &["network", "dns"],
        "a process uses the host's name servers",
    ),
    (
        &["security", "readOnlyRootFilesystem"],
        "a process shares the host's file system",
    ),
    (
        &["security", "capabilities"],
        "a process has the capabilities of its user",
    ),
    (
        &["resources", "limits", "ephemeral-storage"],
        "a process has no disk of its own",
    ),
];

/// As above, but harmless.
const PROCESS_IGNORES: [(&[&str], &str); 1] = [(
    &["resources", "requests"],
    "processes are not scheduled, so nothing is reserved",
)];

pub(super) fn check(spec: View<'_>, execution: Execution, settings: &Settings, cx: &mut Cx<'_>) {
    let chosen = ["execution", "image"]
        .map(|key| spec.get(key))
        .into_iter()
        .find(|view| view.is_present());
    let at = chosen.map_or(spec.key(), View::span);
    body_fits(spec, execution, cx);
    if !cx.options.backends.contains(&execution) {
        let message = format!("backend {execution} is not available in this build");
        let problem = cx.at(&codes::NO_BACKEND, at, message);
        cx.push(problem.hint("only `execution: process` is, with a `command` or `handler`"));
    }
    if spec.get("model").is_present() && !spec.get("image").is_present() {
        let message = "agents made of a model and instructions are not available in this build";
        cx.report(&codes::NO_FEATURE, spec.get("model").key(), message);
    }
    if settings.scaling.autoscale.is_some() {
        let view = if spec.get("autoscaling").is_present() {
            spec.get("autoscaling")
        } else {
            spec.get("scaling").get("metrics")
        };
        let problem = cx.at(
            &codes::NO_FEATURE,
            view.key(),
            "autoscaling is not available in this build",
        );
        cx.push(problem.hint("set a fixed number with `scaling: {replicas: N}`"));
    }
    if execution == Execution::Process {
        process(spec, settings, cx);
    }
}

/// Images need containers, and containers need images.
fn body_fits(spec: View<'_>, execution: Execution, cx: &mut Cx<'_>) {
    let image = spec.get("image");
    if execution == Execution::Process && image.is_present() {
        let problem = cx.at(
            &codes::NOT_HONOURED,
            image.key(),
            "backend process cannot run an image",
        );
        cx.push(problem.hint("remove `execution: process`, or give a `command` instead"));
    }
    let program = ["command", "handler"]
        .map(|key| spec.get(key))
        .into_iter()
        .find(|view| view.is_present());
    if let (Execution::Docker | Execution::Kubernetes, false, Some(program)) =
        (execution, image.is_present(), program)
    {
        let problem = cx.at(
            &codes::NOT_HONOURED,
            program.key(),
            format!("backend {execution} runs images"),
        );
        cx.push(problem.hint("give an `image`, or use `execution: process`"));
    }
}

fn process(spec: View<'_>, settings: &Settings, cx: &mut Cx<'_>) {
    let mut refuse = |code: &'static CodeInfo, span: Span, what: String, why: &str| {
        let problem = cx.at(code, span, what);
        cx.push(problem.hint(why));
    };
    for (path, why) in PROCESS_CANNOT {
        let view = path.iter().fold(spec, |view, key| view.get(key));
        let asked = view.is_present() && view.text() != Some("false");
        if asked {
            let what = format!("backend process cannot honour `spec.{}`", path.join("."));
            refuse(&codes::NOT_HONOURED, view.key(), what, why);
        }
    }
    for (path, why) in PROCESS_IGNORES {
        let view = path.iter().fold(spec, |view, key| view.get(key));
        if view.is_present() {
            let what = format!("`spec.{}` has no effect on backend process", path.join("."));
            refuse(&codes::NOT_FULLY_HONOURED, view.key(), what, why);
        }
    }
    let network = spec.get("network");
    if settings.network.mode != NetworkMode::Host {
        let why = "a process uses the host's network: remove `mode`, or write `host`";
        let what = "backend process has no network of its own".to_owned();
        refuse(&codes::NOT_HONOURED, network.get("mode").span(), what, why);
    }
    if !settings.network.allow_external {
        let what = "backend process cannot keep an agent from reaching other hosts".to_owned();
        let why = "only containers have that: `execution: docker`";
        refuse(
            &codes::NOT_HONOURED,
            network.get("security").key(),
            what,
            why,
        );
    }
    for (port, place) in settings
        .ports
        .iter()
        .filter(|(port, _)| port.host != port.container)
    {
        let what = format!(
            "backend process cannot publish port {} as {}",
            port.container, port.host
        );
        refuse(
            &codes::NOT_HONOURED,
            place.span,
            what,
            "a process binds the host's port itself: use one number",
        );
    }
}
