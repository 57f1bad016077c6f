//! From the checked tree of a `fleet.yaml` to its settings, definitions and agent entries.

use std::{collections::BTreeMap, net::SocketAddr};

use volary_kernel::id::{Name, Tenant};

use super::{
    agent::{Override, table, variables},
    codes,
    context::{Cx, Definitions, SecretDef, SecretFrom},
    messaging,
    model::{
        FilesSource, Initial, MessagingSpec, OpsSpec, QuotaSpec, RetentionSpec, Settle, SourceKind,
        SourceSpec, StoreKind, StoreSpec, WatchMode, defaults,
    },
    source::Place,
    view::View,
    webhooks,
};

/// An agent that a fleet lists.
pub(crate) struct Entry {
    /// As written.
    pub path: String,
    pub at: Place,
    pub over: Override,
}

/// Everything a fleet says beside its agents and definitions.
pub(crate) struct Settings {
    pub name: Option<Name>,
    pub tenant: Tenant,
    pub sources: BTreeMap<Name, SourceSpec>,
    pub messaging: MessagingSpec,
    pub store: StoreSpec,
    pub ops: OpsSpec,
    pub retention: RetentionSpec,
    pub quota: QuotaSpec,
    /// The quota, or the list of agents.
    pub quota_at: Place,
    pub webhooks_at: webhooks::Places,
}

/// The `secrets` and `config` of a fleet.
pub(crate) fn definitions(root: View<'_>, cx: &mut Cx<'_>) -> Definitions {
    let spec = root.get("spec");
    let mut definitions = Definitions::default();
    for (name, keys) in spec.get("secrets").pairs() {
        let keys = keys
            .pairs()
            .filter_map(|(key, def)| Some((key.text.clone(), secret(def, cx)?)))
            .collect();
        definitions.secrets.insert(name.text.clone(), keys);
    }
    for (name, value) in spec.get("config").pairs() {
        match value.text() {
            Some(text) => drop(
                definitions
                    .values
                    .insert(name.text.clone(), text.to_owned()),
            ),
            None => drop(definitions.groups.insert(name.text.clone(), table(value))),
        }
    }
    definitions
}

fn secret(def: View<'_>, cx: &mut Cx<'_>) -> Option<SecretDef> {
    let (env, file) = (def.get("fromEnv"), def.get("fromFile"));
    if env.is_present() == file.is_present() {
        cx.report(
            &codes::CHOICE,
            def.span(),
            "a secret has exactly one of `fromEnv` and `fromFile`",
        );
        return None;
    }
    let (view, from) = match env.text() {
        Some(variable) => (env, SecretFrom::Env(variable.to_owned())),
        None => (file, SecretFrom::File(cx.resolve(file.text()?))),
    };
    Some(SecretDef {
        from,
        place: cx.place(view.span()),
    })
}

/// The agents that a fleet lists.
pub(crate) fn entries(root: View<'_>, cx: &mut Cx<'_>) -> Vec<Entry> {
    let list = root.get("spec").get("agents");
    if list.is_list() && list.items().next().is_none() {
        let problem = cx.at(
            &codes::NO_VALUE,
            list.span(),
            "`spec.agents` is empty: a fleet has at least one agent",
        );
        cx.push(problem);
    }
    let mut entries = Vec::new();
    for item in list.items() {
        let view = if item.is_map() {
            item.get("path")
        } else {
            item
        };
        let Some(path) = view.string() else { continue };
        let at = cx.place(view.span());
        let over = Override {
            name: item.get("name").parse(Name::new),
            name_at: item
                .get("name")
                .is_present()
                .then(|| cx.place(item.get("name").span())),
            replicas: item.get("replicas").int(),
            environment: variables(item.get("environment"), item.get("config"), cx),
            entry: Some(at.clone()),
        };
        entries.push(Entry { path, at, over });
    }
    entries
}

/// The fleet's own settings.
pub(crate) fn settings(root: View<'_>, cx: &mut Cx<'_>) -> Settings {
    let spec = root.get("spec");
    let quota = spec.get("quota").get("maxReplicas");
    let quota_at = if quota.is_present() {
        quota
    } else {
        spec.get("agents")
    };
    let tenant = spec
        .get("tenant")
        .parse(Name::new)
        .map(Tenant::new)
        .unwrap_or_default();
    let ops = ops(spec.get("ops").get("bind"), cx);
    Settings {
        name: root.get("metadata").get("name").parse(Name::new),
        sources: spec
            .get("sources")
            .pairs()
            .filter_map(|(key, view)| source(&key.text, view, cx))
            .collect(),
        messaging: messaging::read(spec.get("messaging"), &tenant, ops.bind, cx),
        store: store(spec.get("store")),
        ops,
        tenant,
        retention: RetentionSpec {
            max_age: spec
                .get("retention")
                .get("maxAge")
                .duration(defaults::RETENTION_MAX_AGE),
            max_bytes: spec
                .get("retention")
                .get("maxBytes")
                .bytes(defaults::RETENTION_MAX_BYTES),
        },
        quota: QuotaSpec {
            max_replicas: quota.int().unwrap_or(defaults::QUOTA_MAX_REPLICAS),
        },
        quota_at: cx.place(quota_at.span()),
        webhooks_at: webhooks::places(spec.get("messaging").get("webhooks"), cx),
    }
}

fn source(name: &str, view: View<'_>, cx: &mut Cx<'_>) -> Option<(Name, SourceSpec)> {
    let kind = SourceKind::Files(files(view, cx)?);
    let settle = settle(view.get("settle"), cx);
    let name = Name::new(name).ok()?;
    let data_type = view.get("dataType").text().unwrap_or(defaults::DATA_TYPE);
    let spec = SourceSpec {
        name: name.clone(),
        kind,
        data_type: data_type.to_owned(),
        settle,
    };
    Some((name, spec))
}

fn files(view: View<'_>, cx: &mut Cx<'_>) -> Option<FilesSource> {
    let path = view.get("path");
    let globs = |key: &str| {
        view.get(key)
            .items()
            .filter_map(View::string)
            .collect::<Vec<_>>()
    };
    Some(FilesSource {
        path: cx.folder(path.text()?, path.span()),
        include: globs("include"),
        exclude: globs("exclude"),
        default_excludes: view.get("defaultExcludes").flag(true),
        max_file_size: view.get("maxFileSize").bytes(defaults::MAX_FILE_SIZE),
        max_pages: view.get("maxPages").int().unwrap_or(defaults::MAX_PAGES),
        watch: match view.get("watch").text() {
            Some("notify") => WatchMode::Notify,
            Some("poll") => WatchMode::Poll,
            _ => WatchMode::Auto,
        },
        poll_interval: view.get("pollInterval").duration(defaults::POLL_INTERVAL),
        initial: match view.get("initial").text() {
            Some("baseline") => Initial::Baseline,
            _ => Initial::Dispatch,
        },
    })
}

fn settle(view: View<'_>, cx: &mut Cx<'_>) -> Settle {
    let rest = view.get("rest").duration(defaults::SETTLE_REST);
    let max_wait = view
        .get("maxWait")
        .duration(defaults::SETTLE_MAX_WAIT.max(rest));
    if max_wait < rest {
        let span = view.get("maxWait").span();
        cx.report(
            &codes::CONTRADICTION,
            span,
            "`maxWait` is shorter than `rest`",
        );
    }
    Settle { rest, max_wait }
}

fn store(view: View<'_>) -> StoreSpec {
    let kind = match view.get("type").text() {
        Some("memory") => StoreKind::Memory,
        _ => StoreKind::Sqlite,
    };
    StoreSpec {
        kind,
        min_free_disk: view.get("minFreeDisk").bytes(defaults::MIN_FREE_DISK),
    }
}

fn ops(bind: View<'_>, cx: &mut Cx<'_>) -> OpsSpec {
    let Some(address) = bind.parse(str::parse::<SocketAddr>) else {
        return OpsSpec::default();
    };
    if !address.ip().is_loopback() && !cx.options.insecure_bind {
        let message = format!("{address} can be reached from other machines, without encryption");
        let problem = cx.at(&codes::OPEN_BIND, bind.span(), message);
        cx.push(problem.hint("use 127.0.0.1, or say `--insecure` where the network is trusted"));
    }
    OpsSpec { bind: address }
}
