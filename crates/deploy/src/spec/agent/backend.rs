//! What a backend can make true. A setting it cannot honour is an error; one without effect is a named warning.

use crate::spec::{
    codes::{self, CodeInfo},
    context::Cx,
    model::{Execution, Isolation, NetworkMode, VolumeSource},
    source::Span,
    view::View,
};

use super::Settings;

pub(super) fn check(spec: View<'_>, execution: Execution, settings: &Settings, cx: &mut Cx<'_>) {
    body_fits(spec, execution, cx);
    available(spec, execution, settings, cx);
    if execution == Execution::Process {
        let mut process = Process { spec, settings, cx };
        process.files();
        process.network();
        process.ports();
        process.ignored();
        if spec.get("handler").is_present() && !spec.get("command").is_present() {
            process.handler();
        }
    } else if spec.get("isolation").is_present() {
        let what = format!("`isolation` has no effect on backend {execution}");
        let problem = cx.at(
            &codes::NOT_FULLY_HONOURED,
            spec.get("isolation").key(),
            what,
        );
        cx.push(problem.hint("containers are always isolated"));
    }
}

/// Images need containers, and containers need images.
fn body_fits(spec: View<'_>, execution: Execution, cx: &mut Cx<'_>) {
    let image = spec.get("image");
    if execution == Execution::Process && image.is_present() {
        let what = "backend process cannot run an image";
        let problem = cx.at(&codes::NOT_HONOURED, image.key(), what);
        cx.push(problem.hint("remove `execution: process`, or give a `command` instead"));
    }
    let programs = ["command", "handler"].map(|key| spec.get(key));
    let program = programs.into_iter().find(|view| view.is_present());
    let container = matches!(execution, Execution::Docker | Execution::Kubernetes);
    if let (true, false, Some(program)) = (container, image.is_present(), program) {
        let what = format!("backend {execution} runs images");
        let problem = cx.at(&codes::NOT_HONOURED, program.key(), what);
        cx.push(problem.hint("give an `image`, or use `execution: process`"));
    }
}

/// Backends and features that this build does not have.
fn available(spec: View<'_>, execution: Execution, settings: &Settings, cx: &mut Cx<'_>) {
    if !cx.options.backends.contains(&execution) {
        let chosen = ["execution", "image"].map(|key| spec.get(key));
        let chosen = chosen.into_iter().find(|view| view.is_present());
        let at = chosen.map_or(spec.key(), View::span);
        let message = format!("backend {execution} is not available in this build");
        let problem = cx.at(&codes::NO_BACKEND, at, message);
        cx.push(problem.hint("only `execution: process` is, with a `command` or `handler`"));
    }
    if spec.get("model").is_present() && !spec.get("image").is_present() {
        let message = "agents made of a model and instructions are not available in this build";
        cx.report(&codes::NO_FEATURE, spec.get("model").key(), message);
    }
    if settings.scaling.autoscale.is_some() {
        let auto = spec.get("autoscaling");
        let metrics = spec.get("scaling").get("metrics");
        let view = if auto.is_present() { auto } else { metrics };
        let message = "autoscaling is not available in this build";
        let problem = cx.at(&codes::NO_FEATURE, view.key(), message);
        cx.push(problem.hint("set a fixed number with `scaling: {replicas: N}`"));
    }
}

/// What a process on this machine can be given, and what not.
struct Process<'a, 'b, 'c> {
    spec: View<'a>,
    settings: &'a Settings,
    cx: &'b mut Cx<'c>,
}

impl Process<'_, '_, '_> {
    fn say(&mut self, code: &'static CodeInfo, span: Span, what: String, hint: &str) {
        let problem = self.cx.at(code, span, what);
        self.cx.push(problem.hint(hint));
    }

    fn refuse(&mut self, span: Span, what: impl Into<String>, hint: &str) {
        self.say(&codes::NOT_HONOURED, span, what.into(), hint);
    }

    /// Mounts put something that exists at a path that exists; without isolation there are none.
    fn files(&mut self) {
        let security = self.spec.get("security");
        let volumes = self.spec.get("volumes");
        if self.settings.isolation == Isolation::None {
            let read_only = security.get("readOnlyRootFilesystem");
            let wanted = [
                (
                    "security.readOnlyRootFilesystem",
                    read_only,
                    self.settings.security.read_only_root,
                ),
                (
                    "security.capabilities",
                    security.get("capabilities"),
                    !self.settings.security.capabilities.is_empty(),
                ),
                ("volumes", volumes, !self.settings.volumes.is_empty()),
            ];
            for (key, view, _) in wanted.into_iter().filter(|(_, _, wanted)| *wanted) {
                let what = format!("`spec.{key}` cannot be honoured with `isolation: none`");
                self.refuse(view.key(), what, "remove one of the two");
            }
            return;
        }
        for (volume, place) in &self.settings.volumes {
            match volume.source {
                VolumeSource::Bind(_) if self.cx.find(&volume.target).is_some() => {}
                VolumeSource::Bind(_) => {
                    let what = format!(
                        "backend process mounts onto paths that exist, and `{}` does not",
                        volume.target.display()
                    );
                    self.refuse(
                        place.span,
                        what,
                        "create it, or use the source's own path in the program",
                    );
                }
                _ => {
                    let what = "backend process has no volumes of this type";
                    self.refuse(
                        place.span,
                        what,
                        "use `type: bind` with a folder of this machine",
                    );
                }
            }
        }
    }

    fn network(&mut self) {
        let network = self.spec.get("network");
        if self.settings.network.mode != NetworkMode::Host {
            let hint = "a process uses the host's network: remove `mode`, or write `host`";
            let what = "backend process has no network of its own";
            self.refuse(network.get("mode").span(), what, hint);
        }
        if !self.settings.network.dns.is_empty() {
            let what = "backend process cannot honour `spec.network.dns`";
            self.refuse(
                network.get("dns").key(),
                what,
                "a process uses the host's name servers",
            );
        }
        if !self.settings.network.allow_external {
            let what = "backend process cannot keep an agent from reaching other hosts";
            let hint = "only containers have that: `execution: docker`";
            self.refuse(network.get("security").key(), what, hint);
        }
    }

    fn ports(&mut self) {
        let moved = |(port, _): &&(crate::spec::model::PortSpec, _)| port.host != port.container;
        for (port, place) in self.settings.ports.iter().filter(moved) {
            let what = format!(
                "backend process cannot publish port {} as {}",
                port.container, port.host
            );
            self.refuse(
                place.span,
                what,
                "a process binds the host's port itself: use one number",
            );
        }
    }

    /// A handler runs only while it has a message: nothing to ask, to bind or to start again.
    fn handler(&mut self) {
        for (key, why) in [
            (
                "healthCheck",
                "an idle handler is always ready; what it prints and how it ends is its health",
            ),
            ("ports", "use a `command` for an agent that listens"),
        ] {
            let view = self.spec.get(key);
            if view.is_present() {
                self.refuse(
                    view.key(),
                    format!("a handler cannot honour `spec.{key}`"),
                    why,
                );
            }
        }
        for (key, why) in [
            (
                "restart",
                "how failed attempts are repeated is set under `delivery`",
            ),
            (
                "scaling",
                "how many run at once is set by `delivery.concurrency`",
            ),
        ] {
            let view = self.spec.get(key);
            if view.is_present() {
                let what = format!("`spec.{key}` has no effect on a handler");
                self.say(&codes::NOT_FULLY_HONOURED, view.key(), what, why);
            }
        }
    }

    /// Harmless, but without effect.
    fn ignored(&mut self) {
        let resources = self.spec.get("resources");
        let disk = resources.get("limits").get("ephemeral-storage");
        if disk.is_present() {
            let what = "backend process cannot honour `spec.resources.limits.ephemeral-storage`";
            self.refuse(disk.key(), what, "a process has no disk of its own");
        }
        let requests = resources.get("requests");
        if requests.is_present() {
            let what = "`spec.resources.requests` has no effect on backend process".to_owned();
            let hint = "processes are not scheduled, so nothing is reserved for them";
            self.say(&codes::NOT_FULLY_HONOURED, requests.key(), what, hint);
        }
    }
}
