//! From a path to a whole fleet: every file is read, every problem is collected, then all or nothing.

use std::{collections::BTreeMap, path::Path};

use volary_kernel::id::{Name, Tenant};

use super::{
    agent::{self, Draft, Override},
    codes,
    context::{Cx, Definitions, LoadOptions},
    cross::{self, Surroundings},
    document::{self, Document, Kind},
    files::{Found, join},
    fleet::{self, Entry, Settings},
    model::{
        Execution, FleetSpec, MessagingSpec, OpsSpec, PortSpec, QuotaSpec, RetentionSpec,
        StoreSpec, defaults,
    },
    problem::{Problem, Problems},
    source::Place,
    view::View,
    webhooks,
};

/// A fleet without errors.
#[derive(Debug)]
pub struct Loaded {
    /// The fleet.
    pub fleet: FleetSpec,
    /// What the user should know.
    pub warnings: Problems,
    ports: Vec<(Name, PortSpec, Place)>,
}

impl Loaded {
    /// Problems with ports of the host that are taken now. Call it before anything is started.
    ///
    /// `is_free` tries to bind a port.
    pub fn check_ports(&self, is_free: &dyn Fn(&PortSpec) -> bool) -> Problems {
        let mut problems = Problems::default();
        for (agent, port, place) in self.ports.iter().filter(|(_, port, _)| !is_free(port)) {
            let message = format!("port {} is already in use", port.host);
            let problem = Problem::at_place(&codes::PORT_TAKEN, place, message);
            problems.push(problem.hint(format!(
                "agent `{agent}` wants it: stop the program that has it, or choose another"
            )));
        }
        problems
    }
}

/// Loads the fleet that `path` means: a fleet.yaml, an agent.yaml (a fleet of one), or a folder with one of them.
///
/// # Errors
/// All problems of all files, warnings among them, if one of them is an error.
pub fn load_fleet(path: &Path, options: &LoadOptions<'_>) -> Result<Loaded, Problems> {
    let mut problems = Problems::default();
    let loaded = load(path, options, &mut problems);
    let problems = problems.sorted();
    match loaded {
        Some((fleet, ports)) if !problems.has_errors() => Ok(Loaded {
            fleet,
            warnings: problems,
            ports,
        }),
        _ => Err(problems),
    }
}

type Ports = Vec<(Name, PortSpec, Place)>;

fn load(
    path: &Path,
    options: &LoadOptions<'_>,
    problems: &mut Problems,
) -> Option<(FleetSpec, Ports)> {
    let path = document::locate(path, options)
        .map_err(|problem| problems.push(*problem))
        .ok()?;
    let document = document::open(&path, None, options, problems)?;
    let nothing = Definitions::default();
    let (settings, drafts, incomplete) = match document.kind {
        Kind::Agent => {
            let draft = read_agent(
                &document,
                Override::default(),
                &Tenant::default(),
                (options, &nothing),
                problems,
            );
            let incomplete = draft.is_none();
            let drafts: Vec<Draft> = draft.into_iter().collect();
            (fleet_of_one(&document, &drafts), drafts, incomplete)
        }
        Kind::Fleet => read_fleet(&document, options, problems),
    };
    let around = Surroundings {
        sources: settings.sources.keys().collect(),
        incomplete,
        has_fleet: document.kind == Kind::Fleet,
        max_replicas: settings.quota.max_replicas,
        quota_at: &settings.quota_at,
        webhooks: &settings.webhooks_at,
    };
    cross::check(&drafts, &around, problems);
    let ports = cross::host_ports(&drafts)
        .into_iter()
        .map(|(name, port, place)| (name.clone(), port, place.clone()));
    let ports = ports.collect();
    let file = join(&(options.files.absolute)(&document.file.path), "");
    let dir = file.parent().unwrap_or(Path::new("/")).to_path_buf();
    let fleet = FleetSpec {
        name: settings.name?,
        file,
        dir,
        tenant: settings.tenant,
        agents: drafts.into_iter().map(|draft| draft.spec).collect(),
        sources: settings.sources,
        messaging: settings.messaging,
        store: settings.store,
        ops: settings.ops,
        retention: settings.retention,
        quota: settings.quota,
    };
    Some((fleet, ports))
}

/// What holds for an agent that no fleet lists.
fn fleet_of_one(document: &Document, drafts: &[Draft]) -> Settings {
    Settings {
        name: drafts.first().map(|draft| draft.spec.name.clone()),
        tenant: Tenant::default(),
        sources: BTreeMap::new(),
        messaging: MessagingSpec::default(),
        store: StoreSpec::default(),
        ops: OpsSpec::default(),
        retention: RetentionSpec::default(),
        quota: QuotaSpec {
            max_replicas: defaults::QUOTA_MAX_REPLICAS,
        },
        quota_at: document::top(&document.file),
        webhooks_at: webhooks::Places::default(),
    }
}

fn read_fleet(
    document: &Document,
    options: &LoadOptions<'_>,
    problems: &mut Problems,
) -> (Settings, Vec<Draft>, bool) {
    let root = View::new(&document.root);
    let nothing = Definitions::default();
    let definitions = {
        let mut cx = Cx::new(options, &nothing, document.file.clone(), problems);
        fleet::definitions(root, &mut cx)
    };
    let mut cx = Cx::new(options, &definitions, document.file.clone(), problems);
    let settings = fleet::settings(root, &mut cx);
    let entries = fleet::entries(root, &mut cx);
    let listed = entries.len();
    let mut drafts = Vec::new();
    for entry in entries {
        drafts.extend(read_entry(
            entry,
            &settings.tenant,
            document,
            (options, &definitions),
            problems,
        ));
    }
    let incomplete = drafts.len() < listed;
    (settings, drafts, incomplete)
}

type World<'a> = (&'a LoadOptions<'a>, &'a Definitions);

/// Reads an agent that a fleet lists.
fn read_entry(
    entry: Entry,
    tenant: &Tenant,
    fleet: &Document,
    world: World<'_>,
    problems: &mut Problems,
) -> Option<Draft> {
    let path = join(fleet.file.dir(), &entry.path);
    let path = match (world.0.files.find)(&path) {
        Some(Found::Folder) => match document::in_folder(&path, "agent", world.0) {
            Ok(Some(path)) => path,
            Ok(None) => {
                let message = format!("folder `{}` has no agent.yaml", entry.path);
                problems.push(Problem::at_place(&codes::NO_MANIFEST, &entry.at, message));
                return None;
            }
            Err(problem) => {
                problems.push(*problem);
                return None;
            }
        },
        _ => path,
    };
    let document = document::open(&path, Some(&entry.at), world.0, problems)?;
    if document.kind == Kind::Fleet {
        let message = format!("`{}` is a fleet; a fleet lists agents", entry.path);
        problems.push(Problem::at_place(&codes::KIND, &entry.at, message));
        return None;
    }
    read_agent(&document, entry.over, tenant, world, problems)
}

fn read_agent(
    document: &Document,
    over: Override,
    tenant: &Tenant,
    (options, definitions): World<'_>,
    problems: &mut Problems,
) -> Option<Draft> {
    let mut cx = Cx::new(options, definitions, document.file.clone(), problems);
    agent::read(View::new(&document.root), tenant, over, &mut cx)
}

/// Backends that this build has.
pub const BACKENDS: &[Execution] = &[Execution::Process];
