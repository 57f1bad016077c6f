//! Ports, services, volumes, network, security.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use crate::spec::{
    codes,
    context::Cx,
    files::join,
    model::{
        Capabilities, Execution, NetworkMode, NetworkSpec, PortSpec, Protocol, SecuritySpec,
        ServiceSpec, VolumeSource, VolumeSpec,
    },
    port::{parse_port, parse_short_port},
    quantity::parse_memory,
    rules::capability,
    source::Place,
    view::View,
};

// --- Ports -----------------------------------------------------------------------------------

/// `spec.ports` and `spec.network.ports` together; the same port in both is one.
pub(super) fn ports(spec: View<'_>, cx: &mut Cx<'_>) -> Vec<(PortSpec, Place)> {
    let mut ports: Vec<(PortSpec, Place)> = Vec::new();
    let own = spec.get("ports").items().map(|item| (item, Origin::Own));
    let network = spec
        .get("network")
        .get("ports")
        .items()
        .map(|item| (item, Origin::Network));
    let count = spec.get("ports").items().count();
    for (item, origin) in own.chain(network) {
        let Some(port) = port(item) else { continue };
        let same =
            |other: &PortSpec| other.container == port.container && other.protocol == port.protocol;
        let place = cx.place(item.span());
        match (
            origin,
            ports.iter().take(count).find(|(other, _)| same(other)),
        ) {
            (Origin::Network, Some((other, _))) if *other == port => {}
            (Origin::Network, Some((other, first))) => {
                let message = format!(
                    "port {} is published as {} here and as {} under `spec.ports`",
                    port.container, port.host, other.host
                );
                let problem = cx.at(&codes::CONTRADICTION, item.span(), message);
                cx.push(problem.related(&first.file, first.span, "the other one is here"));
            }
            _ => ports.push((port, place)),
        }
    }
    ports
}

#[derive(Clone, Copy)]
enum Origin {
    Own,
    Network,
}

fn port(view: View<'_>) -> Option<PortSpec> {
    if !view.is_map() {
        return view.parse(parse_short_port);
    }
    let container = view.get("container").parse(parse_port)?;
    let host = view.get("host");
    Some(PortSpec {
        container,
        host: if host.is_present() {
            host.parse(parse_port)?
        } else {
            container
        },
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        protocol: protocol(view.get("protocol")),
    })
}

fn protocol(view: View<'_>) -> Protocol {
    match view.text() {
        Some("udp") => Protocol::Udp,
        _ => Protocol::Tcp,
    }
}

pub(super) fn services(view: View<'_>, cx: &mut Cx<'_>) -> Vec<ServiceSpec> {
    let mut services: Vec<ServiceSpec> = Vec::new();
    for item in view.items() {
        let (Some(name), Some(port)) = (
            item.get("name").string(),
            item.get("port").parse(parse_port),
        ) else {
            continue;
        };
        if services.iter().any(|service| service.name == name) {
            let span = item.get("name").span();
            cx.report(
                &codes::DUPLICATE_ITEM,
                span,
                format!("service `{name}` stands here a second time"),
            );
        } else {
            services.push(ServiceSpec {
                name,
                port,
                protocol: protocol(item.get("protocol")),
            });
        }
    }
    services
}

// --- Volumes ---------------------------------------------------------------------------------

/// Volumes, each with the place of its target.
pub(super) fn volumes(view: View<'_>, cx: &mut Cx<'_>) -> Vec<(VolumeSpec, Place)> {
    let mut volumes: Vec<(VolumeSpec, Place)> = Vec::new();
    for item in view.items() {
        let source = volume_source(item, cx);
        let Some(target) = item
            .get("target")
            .text()
            .filter(|target| target.starts_with('/') && !target.contains(".."))
            .map(|target| join(&PathBuf::from("/"), target))
        else {
            continue;
        };
        if volumes.iter().any(|(volume, _)| volume.target == target) {
            let span = item.get("target").span();
            cx.report(
                &codes::DUPLICATE_ITEM,
                span,
                format!("`{}` is mounted a second time", target.display()),
            );
        } else if let Some(source) = source {
            let read_only = item.get("readOnly").flag(false);
            let volume = VolumeSpec {
                source,
                target,
                read_only,
            };
            volumes.push((volume, cx.place(item.get("target").span())));
        }
    }
    volumes
}

fn volume_source(view: View<'_>, cx: &mut Cx<'_>) -> Option<VolumeSource> {
    let source = view.get("source");
    let text = source.text();
    let is_path = text.is_some_and(|text| text.starts_with(['.', '/', '~']) || text.contains('/'));
    let kind = view.get("type").text().unwrap_or(match text {
        None => "tmpfs",
        Some(_) if is_path => "bind",
        Some(_) => "volume",
    });
    let temporary = matches!(kind, "tmpfs" | "temporary");
    let idle = if temporary {
        ("source", source)
    } else {
        ("size", view.get("size"))
    };
    if idle.1.is_present() {
        let message = format!("`{}` has no effect on a volume of type {kind}", idle.0);
        cx.report(&codes::CHOICE, idle.1.key(), message);
    }
    if temporary {
        return Some(VolumeSource::Temporary(
            view.get("size").parse(parse_memory),
        ));
    }
    if !source.is_present() {
        let message = format!("a volume of type {kind} needs a `source`");
        cx.report(&codes::MISSING_KEY, view.span(), message);
    }
    let text = text?;
    match kind {
        "bind" => bind(text, source, cx),
        "volume" if is_path => {
            let message = format!("a volume has a name, found the path `{text}`");
            cx.report(&codes::BAD_PATH, source.span(), message);
            None
        }
        "volume" => Some(VolumeSource::Volume(text.to_owned())),
        _ => config_map(text, source, cx),
    }
}

fn config_map(group: &str, view: View<'_>, cx: &mut Cx<'_>) -> Option<VolumeSource> {
    let found = cx.definitions.groups.get(group).cloned();
    if found.is_none() {
        let message = format!("config group `{group}` is not declared");
        let problem = cx.at(&codes::CONFIG_MISSING, view.span(), message);
        let hint = format!("add to fleet.yaml: spec.config: {{{group}: {{file-name: content}}}}");
        cx.push(problem.hint(hint));
    }
    found.map(VolumeSource::ConfigMap)
}

fn bind(text: &str, view: View<'_>, cx: &mut Cx<'_>) -> Option<VolumeSource> {
    if text.starts_with('~') {
        cx.report(
            &codes::BAD_PATH,
            view.span(),
            format!("`~` is not expanded, found `{text}`"),
        );
        return None;
    }
    let path = cx.resolve(text);
    if cx.find(&path).is_none() {
        cx.report(
            &codes::UNREADABLE,
            view.span(),
            format!("bind source `{text}` does not exist"),
        );
    }
    Some(VolumeSource::Bind(path))
}

// --- Network, security -----------------------------------------------------------------------

pub(super) fn network(view: View<'_>, execution: Execution, cx: &mut Cx<'_>) -> NetworkSpec {
    let default = NetworkSpec::new(execution);
    let mode = match view.get("mode").text() {
        None => default.mode,
        Some("host") => NetworkMode::Host,
        Some("bridge") => NetworkMode::Bridge,
        Some("none") => NetworkMode::None,
        Some(name) => NetworkMode::Custom(name.to_owned()),
    };
    let security = view.get("security");
    let allow = security.get("allowExternalConnections");
    let hosts = security.get("allowedHosts");
    let allowed_hosts: Vec<_> = hosts
        .items()
        .filter_map(View::text)
        .map(str::to_lowercase)
        .collect();
    if allow.is_present() && allow.flag(true) && !allowed_hosts.is_empty() {
        let message = "all outside connections are allowed, yet hosts are listed";
        let problem = cx.at(&codes::CONTRADICTION, hosts.key(), message);
        let problem = problem.related(&cx.file, allow.span(), "they are allowed here");
        cx.push(
            problem.hint("write `allowExternalConnections: false` to allow the listed hosts only"),
        );
    }
    NetworkSpec {
        mode,
        dns: view
            .get("dns")
            .items()
            .filter_map(|item| item.parse(str::parse))
            .collect(),
        allow_external: allow.flag(allowed_hosts.is_empty()),
        allowed_hosts,
    }
}

/// A user without a group gets the group of the same number; a group without a user is refused, since it would
/// mean another user on every backend.
pub(super) fn security(view: View<'_>, cx: &mut Cx<'_>) -> SecuritySpec {
    let list = |view: View<'_>| {
        let items = view.items();
        items.filter_map(|item| item.parse(capability)).collect()
    };
    let capabilities = view.get("capabilities");
    let (user, group) = (view.get("runAsUser").int(), view.get("runAsGroup"));
    if group.is_present() && !view.get("runAsUser").is_present() {
        let message = "`runAsGroup` needs a `runAsUser`";
        cx.report(&codes::MISSING_KEY, group.key(), message);
    }
    SecuritySpec {
        run_as_user: user,
        run_as_group: group.int().or(user),
        read_only_root: view.get("readOnlyRootFilesystem").flag(false),
        capabilities: Capabilities {
            add: list(capabilities.get("add")),
            drop: list(capabilities.get("drop")),
        },
    }
}
