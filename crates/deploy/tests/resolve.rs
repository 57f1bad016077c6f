//! From manifests on disk to what is asked of backend and supervisor.

use std::path::Path;
use std::time::Duration;

use volary_deploy::backend::{EnvValue, PrivateFile, ReplicaId, User};
use volary_deploy::health::Check;
use volary_deploy::resolve::{Grant, agent_plan, handler_run, register_secrets};
use volary_deploy::spec::files::Files;
use volary_deploy::spec::model::{AgentSpec, FleetSpec};
use volary_deploy::spec::{BACKENDS, LoadOptions, load_fleet};
use volary_deploy::supervise::{Body, RestartPolicy};
use volary_kernel::secret::{Redactor, Secret};

const FLEET: &str = "apiVersion: volary.dev/v1
kind: Fleet
metadata: {name: demo}
spec:
  agents: [server.yaml, indexer.yaml]
  secrets:
    keys: {api: {fromEnv: CANARY}}
";

const SERVER: &str = "apiVersion: agent.dev/v1
kind: Agent
metadata: {name: server}
spec:
  command: [sh, -c, 'exec sleep 1000']
  ports: [18080]
  environment:
    - {name: MODE, value: fast}
  secrets:
    - {name: api-key, from: secret, secretName: keys, secretKey: api}
  healthCheck: {http: {path: /health, port: 18080}, interval: 2s, retries: 4}
  resources: {limits: {cpu: 500m, memory: 64Mi}}
  security: {runAsUser: 1000, runAsGroup: 1000}
  restart: {policy: on-failure, maxRestarts: 3}
";

const INDEXER: &str = "apiVersion: agent.dev/v1
kind: Agent
metadata: {name: indexer}
spec:
  handler: [sh, -c, cat]
  dependsOn: [server]
  delivery: {timeout: 7s}
";

fn load(dir: &Path) -> FleetSpec {
    for (name, text) in [
        ("fleet.yaml", FLEET),
        ("server.yaml", SERVER),
        ("indexer.yaml", INDEXER),
    ] {
        std::fs::write(dir.join(name), text).expect("a file");
    }
    let env = |name: &str| match name {
        "CANARY" => Some("canary-3c1d55".to_owned()),
        "PATH" => Some("/bin:/usr/bin".to_owned()),
        _ => None,
    };
    let options = LoadOptions {
        files: Files::disk(),
        env: &env,
        backends: BACKENDS,
        insecure_bind: false,
    };
    match load_fleet(&dir.join("fleet.yaml"), &options) {
        Ok(loaded) => loaded.fleet,
        Err(problems) => panic!("{problems:#?}"),
    }
}

fn agent<'a>(fleet: &'a FleetSpec, name: &str) -> &'a AgentSpec {
    fleet
        .agents
        .iter()
        .find(|agent| agent.name.as_str() == name)
        .expect("an agent")
}

#[test]
fn a_manifest_becomes_a_plan_with_what_the_node_grants() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = load(dir.path());
    let grant = |id: &ReplicaId| Grant {
        env: [("VOLARY_REPLICA".to_owned(), EnvValue::Plain(id.to_string()))].into(),
        files: vec![PrivateFile::new("token", Secret::new("token-of-a-replica"))],
        binds: Vec::new(),
    };
    let plan = agent_plan(agent(&fleet, "server"), grant).unwrap();
    assert_eq!(plan.ports, [18080]);
    assert_eq!(plan.rules.policy, RestartPolicy::OnFailure);
    assert_eq!(plan.rules.max_restarts, Some(3));
    let health = plan.health.unwrap();
    assert!(matches!(health.check, Check::Http(check) if check.path == "/health"));
    assert_eq!(
        (health.interval, health.retries),
        (Duration::from_secs(2), 4)
    );
    let Body::Process(specs) = plan.body else {
        panic!("a process")
    };
    assert_eq!(specs.len(), 1);
    let program = &specs[0].program;
    assert_eq!(
        program.env["VOLARY_REPLICA"],
        EnvValue::Plain("server-0".to_owned())
    );
    assert_eq!(program.env["MODE"], EnvValue::Plain("fast".to_owned()));
    assert_eq!(
        program.env["API_KEY_FILE"],
        EnvValue::PrivatePath("api-key".to_owned())
    );
    let files: Vec<_> = program
        .files
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(files, ["api-key", "token"]);
    assert_eq!(
        (program.limits.memory, program.limits.cpu),
        (Some(64 << 20), Some(0.5))
    );
    assert_eq!(
        program.user,
        Some(User {
            uid: 1000,
            gid: 1000
        })
    );
    assert!(!format!("{specs:?}").contains("canary"), "{specs:?}");
}

#[test]
fn a_handler_has_a_plan_without_processes_and_a_run_per_message() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = load(dir.path());
    let indexer = agent(&fleet, "indexer");
    let plan = agent_plan(indexer, |_| Grant::default()).unwrap();
    assert!(matches!(plan.body, Body::Handler));
    assert_eq!(plan.depends_on[0].as_str(), "server");
    let id = ReplicaId::new(indexer.name.clone(), 0);
    let run = handler_run(indexer, id.clone(), &Grant::default(), "{}").unwrap();
    assert_eq!(
        (run.timeout, run.program.argv.len()),
        (Duration::from_secs(7), 3)
    );
    assert!(handler_run(agent(&fleet, "server"), id, &Grant::default(), "").is_none());
}

#[test]
fn declared_secrets_are_registered_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = load(dir.path());
    let redactor = Redactor::default();
    assert_eq!(
        register_secrets(agent(&fleet, "server"), &redactor).unwrap(),
        Vec::<String>::new()
    );
    assert!(redactor.contains(b"x canary-3c1d55 y"));
}
