//! Probes.

use std::time::Duration;

use crate::spec::{
    address::{parse_host_port, parse_url},
    codes,
    context::Cx,
    model::{HealthCheck, PortSpec, Probe, Protocol, defaults},
    port::parse_port,
    source::Place,
    view::View,
};

use super::body::program;

const LOOPBACK: &str = "127.0.0.1";
const PATH: &str = "/health";

/// The port a probe asks if it names none: the agent's only TCP port.
pub(super) fn default_port(ports: &[(PortSpec, Place)]) -> Option<u16> {
    let mut tcp = ports
        .iter()
        .filter(|(port, _)| port.protocol == Protocol::Tcp);
    match (tcp.next(), tcp.next()) {
        (Some((port, _)), None) => Some(port.container),
        _ => None,
    }
}

/// A probe with its timing. `None` without one, or with one that has been reported.
pub(super) fn read(view: View<'_>, port: Option<u16>, cx: &mut Cx<'_>) -> Option<HealthCheck> {
    if !view.is_map() {
        return None;
    }
    let forms: Vec<_> = ["command", "http", "tcp", "file"]
        .map(|key| (key, view.get(key)))
        .into_iter()
        .filter(|(_, form)| form.is_present())
        .collect();
    match forms[..] {
        [] => {
            let problem = cx.at(&codes::CHOICE, view.key(), "the check says nothing to ask");
            cx.push(problem.hint("add one of command, http, tcp and file"));
        }
        [_] => {}
        [(first, at), (second, other), ..] => {
            let problem = cx.at(
                &codes::CHOICE,
                other.key(),
                format!("`{second}` beside `{first}`: a check asks one thing"),
            );
            let problem = problem.related(&cx.file, at.key(), format!("`{first}` is here"));
            cx.push(problem.hint("keep one of command, http, tcp and file"));
        }
    }
    for key in ["interval", "timeout"] {
        let value = view.get(key);
        if value.is_present()
            && value.duration(defaults::HEALTH_INTERVAL) < Duration::from_millis(1)
        {
            cx.report(
                &codes::OUT_OF_RANGE,
                value.span(),
                format!("`{key}` must be at least 1ms"),
            );
        }
    }
    let (key, form) = *forms.first()?;
    Some(HealthCheck {
        probe: probe(key, form, port, cx)?,
        interval: view.get("interval").duration(defaults::HEALTH_INTERVAL),
        timeout: view.get("timeout").duration(defaults::HEALTH_TIMEOUT),
        retries: view
            .get("retries")
            .int()
            .unwrap_or(defaults::HEALTH_RETRIES),
        start_period: view
            .get("startPeriod")
            .duration(defaults::HEALTH_START_PERIOD),
    })
}

fn probe(key: &str, view: View<'_>, port: Option<u16>, cx: &mut Cx<'_>) -> Option<Probe> {
    match key {
        "command" => Some(Probe::Command {
            argv: program(view, cx)?,
        }),
        "http" if view.is_map() => Some(Probe::Http {
            host: view.get("host").string().unwrap_or_else(|| LOOPBACK.into()),
            port: port_of(view, port, cx)?,
            path: view.get("path").string().unwrap_or_else(|| PATH.into()),
            headers: super::table(view.get("headers")),
            expect_status: view.get("expectStatus").parse(str::parse),
        }),
        "http" => {
            let (host, port, path) = view.parse(parse_url)?;
            Some(Probe::Http {
                host,
                port,
                path,
                headers: Default::default(),
                expect_status: None,
            })
        }
        "tcp" if view.is_map() => Some(Probe::Tcp {
            host: view.get("host").string().unwrap_or_else(|| LOOPBACK.into()),
            port: port_of(view, port, cx)?,
        }),
        "tcp" => view
            .parse(parse_host_port)
            .map(|(host, port)| Probe::Tcp { host, port }),
        _ => {
            let path = if view.is_map() {
                view.get("path")
            } else {
                view
            };
            let max_age = view
                .get("maxAge")
                .is_present()
                .then(|| view.get("maxAge").duration(Duration::ZERO));
            Some(Probe::File {
                path: cx.resolve(path.text()?),
                max_age,
            })
        }
    }
}

fn port_of(view: View<'_>, default: Option<u16>, cx: &mut Cx<'_>) -> Option<u16> {
    let port = view.get("port");
    if port.is_present() {
        return port.parse(parse_port);
    }
    if default.is_none() {
        let message = "the check names no port, and the agent does not have exactly one TCP port";
        let problem = cx.at(&codes::MISSING_KEY, view.span(), message);
        cx.push(problem.hint("add `port`"));
    }
    default
}
