//! The `files` source on real directories: notifications, intervals, saves as editors do them, moves, losses.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use volary_context::{
    conformance::{Ledger, Running, World, check_source},
    files::{FilesConfig, FilesSource, Initial, SettleConfig, WatchMode},
    page::{ContentHash, KindName},
    source::{Notice, PageProblem},
};
use volary_kernel::{
    Name, SystemClock,
    secret::{Redactor, Secret},
};

// --- helpers -------------------------------------------------------------------------------------

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        put(&self.root(), path, Some(content.as_bytes()));
    }

    /// The regular files that are there, as the source should know them.
    fn truth(&self) -> BTreeMap<String, ContentHash> {
        let mut found = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.root())
            .into_iter()
            .filter_map(Result::ok)
        {
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(self.root()).unwrap();
                let path = volary_context::path::page_path(path).unwrap();
                found.insert(path, ContentHash::of(&fs::read(entry.path()).unwrap()));
            }
        }
        found
    }

    fn config(&self) -> FilesConfig {
        fs::create_dir_all(self.root()).unwrap();
        FilesConfig::new(Name::new("notes").unwrap(), self.root())
    }

    fn source(&self, change: impl FnOnce(&mut FilesConfig)) -> Arc<FilesSource> {
        let mut config = self.config();
        change(&mut config);
        Arc::new(FilesSource::new(config, SystemClock::shared()).unwrap())
    }

    async fn run(&self, change: impl FnOnce(&mut FilesConfig)) -> Running {
        let run = Running::start(self.source(change), Ledger::default());
        run.until_caught_up().await;
        run
    }
}

fn put(root: &Path, path: &str, content: Option<&[u8]>) {
    let path = root.join(path);
    match content {
        Some(content) => {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        None => {
            let _may_not_exist = fs::remove_file(path);
        }
    }
}

fn kinds(told: &[(&str, KindName)]) -> Vec<(String, KindName)> {
    told.iter()
        .map(|(path, kind)| ((*path).to_owned(), *kind))
        .collect()
}

fn poll(config: &mut FilesConfig) {
    config.watch = WatchMode::Poll;
    config.poll_interval = Duration::from_millis(30);
}

/// Does `act` on a tree that holds `a`, and says what was told of it, up to a marker written afterwards.
async fn told(setup: impl Fn(&Tree), act: impl Fn(&Tree)) -> Vec<(String, KindName)> {
    let tree = Tree::new();
    tree.write("a", "1");
    setup(&tree);
    let run = tree.run(|_| {}).await;
    let before = run.ask(|ledger| ledger.changes.len());
    act(&tree);
    tree.write("zz-marker", "x");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    let mut told = run.stop().await.told(before);
    assert_eq!(told.pop(), Some(("zz-marker".to_owned(), KindName::Added)));
    told
}

// --- contract ------------------------------------------------------------------------------------

fn world(change: impl FnOnce(&mut FilesConfig)) -> World {
    let tree = Tree::new();
    let source = tree.source(change);
    let root = tree.root();
    World {
        source,
        put: Box::new(move |path, content| put(&root, path, content)),
        keep: Box::new(tree.dir),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_by_notification_keep_the_contract() {
    check_source(|| world(|config| config.watch = WatchMode::Notify)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_by_interval_keep_the_contract() {
    check_source(|| world(poll)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_settle_at_once_keep_all_but_coalescing() {
    let tree = Tree::new();
    let run = tree
        .run(|config| {
            config.settle = SettleConfig {
                rest: Duration::ZERO,
                max_wait: Duration::ZERO,
            }
        })
        .await;
    for n in 0..200 {
        tree.write(&format!("d{}/{n}", n % 5), "content");
    }
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}

// --- saves ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_save_by_truncating_and_writing_is_one_replacement() {
    let told = told(|_| {}, |tree| tree.write("a", "2")).await;
    assert_eq!(told, kinds(&[("a", KindName::Replaced)]));
}

#[tokio::test]
async fn a_save_by_temporary_file_and_rename_is_one_replacement() {
    let told = told(
        |_| {},
        |tree| {
            tree.write("a.tmp", "2");
            fs::rename(tree.at("a.tmp"), tree.at("a")).unwrap();
        },
    )
    .await;
    assert_eq!(told, kinds(&[("a", KindName::Replaced)]));
}

#[tokio::test]
async fn a_save_by_backup_and_new_file_is_one_replacement() {
    let told = told(
        |_| {},
        |tree| {
            fs::write(tree.at("4913"), "").unwrap();
            fs::remove_file(tree.at("4913")).unwrap();
            fs::rename(tree.at("a"), tree.at("a~")).unwrap();
            tree.write("a", "2");
            fs::remove_file(tree.at("a~")).unwrap();
        },
    )
    .await;
    assert_eq!(told, kinds(&[("a", KindName::Replaced)]));
}

#[tokio::test]
async fn created_and_deleted_at_once_is_nothing() {
    let told = told(
        |_| {},
        |tree| {
            tree.write("b", "1");
            fs::remove_file(tree.at("b")).unwrap();
        },
    )
    .await;
    assert_eq!(told, []);
}

#[tokio::test]
async fn deleted_and_written_again_with_the_same_content_is_nothing() {
    let told = told(
        |_| {},
        |tree| {
            fs::remove_file(tree.at("a")).unwrap();
            tree.write("a", "1");
        },
    )
    .await;
    assert_eq!(told, []);
}

#[tokio::test]
async fn a_file_written_in_many_pieces_is_one_addition() {
    let told = told(
        |_| {},
        |tree| {
            use std::io::Write;
            let mut file = fs::File::create(tree.at("log")).unwrap();
            for n in 0..100 {
                writeln!(file, "line {n}").unwrap();
            }
        },
    )
    .await;
    assert_eq!(told, kinds(&[("log", KindName::Added)]));
}

// --- directories ---------------------------------------------------------------------------------

fn nested(tree: &Tree) {
    tree.write("d/x", "1");
    tree.write("d/e/y", "2");
}

#[tokio::test]
async fn a_renamed_directory_is_delete_and_add_for_each_page() {
    let told = told(nested, |tree| {
        fs::rename(tree.at("d"), tree.at("moved")).unwrap()
    })
    .await;
    let expected = [
        ("d/e/y", KindName::Invalidated),
        ("d/x", KindName::Invalidated),
        ("moved/e/y", KindName::Added),
        ("moved/x", KindName::Added),
    ];
    assert_eq!(told, kinds(&expected));
}

#[tokio::test]
async fn changes_in_a_moved_directory_are_still_seen() {
    let tree = Tree::new();
    nested(&tree);
    let run = tree.run(|_| {}).await;
    fs::rename(tree.at("d"), tree.at("m1")).unwrap();
    fs::rename(tree.at("m1"), tree.at("m2")).unwrap();
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("m2/e/y", "changed");
    tree.write("m2/e/new", "new");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}

#[tokio::test]
async fn a_directory_moved_out_invalidates_its_pages() {
    let told = told(nested, |tree| {
        fs::rename(tree.at("d"), tree.dir.path().join("outside")).unwrap()
    })
    .await;
    assert_eq!(
        told,
        kinds(&[
            ("d/e/y", KindName::Invalidated),
            ("d/x", KindName::Invalidated)
        ])
    );
}

#[tokio::test]
async fn a_directory_moved_in_adds_its_pages() {
    let told = told(
        |tree| put(tree.dir.path(), "outside/e/y", Some(b"2")),
        |tree| fs::rename(tree.dir.path().join("outside"), tree.at("d")).unwrap(),
    )
    .await;
    assert_eq!(told, kinds(&[("d/e/y", KindName::Added)]));
}

#[tokio::test]
async fn a_directory_swapped_for_another_is_told_by_its_pages() {
    let told = told(
        |tree| {
            nested(tree);
            put(tree.dir.path(), "other/x", Some(b"other"));
        },
        |tree| {
            fs::rename(tree.at("d"), tree.dir.path().join("old")).unwrap();
            fs::rename(tree.dir.path().join("other"), tree.at("d")).unwrap();
        },
    )
    .await;
    assert_eq!(
        told,
        kinds(&[
            ("d/e/y", KindName::Invalidated),
            ("d/x", KindName::Replaced)
        ])
    );
}

#[tokio::test]
async fn a_file_that_becomes_a_directory_and_back_is_followed() {
    let tree = Tree::new();
    tree.write("a", "1");
    let run = tree.run(|_| {}).await;
    fs::remove_file(tree.at("a")).unwrap();
    tree.write("a/inner", "2");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    fs::remove_dir_all(tree.at("a")).unwrap();
    tree.write("a", "3");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}

#[tokio::test]
async fn deep_directories_made_at_once_are_all_watched() {
    let tree = Tree::new();
    let run = tree.run(|_| {}).await;
    tree.write("1/2/3/4/5/6/7/8/a", "x");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("1/2/3/4/5/6/7/8/a", "y");
    tree.write("1/2/3/b", "z");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}

/// Any operation may fail, for example a move into itself: the tree that is there afterwards is the truth.
fn random_operation(tree: &Tree, random: &mut impl FnMut(usize) -> usize) {
    let directories = ["", "a/", "b/", "a/c/", "b/d/", "a/c/e/"];
    let directory = directories[random(directories.len())];
    let file = format!("{directory}{}", random(5));
    let other = directories[1 + random(directories.len() - 1)];
    match random(10) {
        0 => drop(fs::remove_dir_all(tree.at(other))),
        1 => drop(fs::rename(
            tree.at(other),
            tree.at(&format!("{directory}moved{}", random(2))),
        )),
        2 => drop(fs::rename(
            tree.at(&format!("moved{}", random(2))),
            tree.at(other.trim_end_matches('/')),
        )),
        3 => drop(fs::rename(
            tree.at(&file),
            tree.at(&format!("{other}{}", random(5))),
        )),
        4 => drop(symlink(tree.root(), tree.at(&format!("{file}-link")))),
        5 => drop(fs::remove_file(tree.at(&file))),
        _ => {
            let path = tree.at(&file);
            drop(fs::create_dir_all(path.parent().unwrap()));
            drop(fs::write(path, random(4).to_string()));
        }
    }
}

async fn random_operations_fold_to_the_tree(seed: u64, change: fn(&mut FilesConfig)) {
    let mut state = seed;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let tree = Tree::new();
    let mut ledger = Ledger::default();
    for _life in 0..3 {
        let run = Running::start(tree.source(change), ledger);
        run.until_caught_up().await;
        for _round in 0..6 {
            (0..40).for_each(|_| random_operation(&tree, &mut random));
            let truth = tree.truth();
            run.until_pages(&truth).await;
        }
        ledger = run.stop().await;
        (0..20).for_each(|_| random_operation(&tree, &mut random));
    }
}

#[tokio::test]
async fn random_moves_writes_and_removals_fold_to_the_tree_that_is_there() {
    for seed in 1..=4 {
        random_operations_fold_to_the_tree(seed, |_| {}).await;
    }
}

#[tokio::test]
async fn random_operations_without_rest_fold_to_the_tree_that_is_there() {
    for seed in 11..=14 {
        let at_once = |config: &mut FilesConfig| {
            config.settle = SettleConfig {
                rest: Duration::ZERO,
                max_wait: Duration::ZERO,
            };
        };
        random_operations_fold_to_the_tree(seed, at_once).await;
    }
}

// --- root ----------------------------------------------------------------------------------------

async fn root_goes_and_comes(change: impl FnOnce(&mut FilesConfig)) {
    let tree = Tree::new();
    tree.write("a", "1");
    tree.write("d/b", "1");
    let run = tree.run(change).await;
    fs::remove_dir_all(tree.root()).unwrap();
    run.until("no page", |ledger| ledger.pages().is_empty())
        .await;
    run.until("away", |ledger| {
        ledger
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::Away(_)))
    })
    .await;
    tree.write("d/b", "2");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("d/c", "3");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    assert!(run.stop().await.notices.contains(&Notice::Back));
}

#[tokio::test]
async fn a_root_that_goes_and_comes_back_is_followed_by_notification() {
    root_goes_and_comes(|config| config.watch = WatchMode::Notify).await;
}

#[tokio::test]
async fn a_root_that_goes_and_comes_back_is_followed_by_interval() {
    root_goes_and_comes(poll).await;
}

#[tokio::test]
async fn a_root_swapped_for_another_directory_is_followed() {
    let tree = Tree::new();
    tree.write("a", "1");
    let run = tree.run(|_| {}).await;
    put(tree.dir.path(), "other/b", Some(b"2"));
    fs::rename(tree.root(), tree.dir.path().join("old")).unwrap();
    fs::rename(tree.dir.path().join("other"), tree.root()).unwrap();
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("c", "3");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}

#[tokio::test]
async fn a_root_that_never_was_is_an_error_and_one_that_was_is_waited_for() {
    let tree = Tree::new();
    let source = tree.source(|_| {});
    fs::remove_dir(tree.root()).unwrap();
    let run = Running::start(source.clone(), Ledger::default());
    run.until("an error", |ledger| ledger.ended.is_some()).await;
    let error = run.ask(|ledger| ledger.ended.clone()).unwrap().unwrap_err();
    assert!(
        error.starts_with("root `") && error.contains("does not exist"),
        "{error}"
    );

    tree.write("a", "1");
    let run = Running::start(source.clone(), Ledger::default());
    run.until_caught_up().await;
    let ledger = run.stop().await;
    fs::rename(tree.root(), tree.dir.path().join("unmounted")).unwrap();
    let run = Running::start(source, ledger);
    run.until("away", |ledger| {
        matches!(ledger.notices.last(), Some(Notice::Away(_)))
    })
    .await;
    assert_eq!(
        run.ask(|ledger| ledger.pages().len()),
        1,
        "nothing is taken for deleted while the root was not seen"
    );
    fs::rename(tree.dir.path().join("unmounted"), tree.root()).unwrap();
    run.until_caught_up().await;
    assert_eq!(run.stop().await.changes.len(), 1);
}

// --- losses --------------------------------------------------------------------------------------

#[tokio::test]
async fn lost_notifications_are_made_good_by_a_look_at_everything() {
    let tree = Tree::new();
    tree.write("a", "1");
    let source = tree.source(|_| {});
    let run = Running::start(source.clone(), Ledger::default());
    run.until_caught_up().await;
    for n in 0..20 {
        tree.write(&format!("d{n}/x"), "1");
        source.inject_overflow();
    }
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("d3/x", "after");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    let ledger = run.stop().await;
    assert!(
        ledger
            .notices
            .contains(&Notice::Rescan("notifications were lost"))
    );
}

#[tokio::test]
async fn without_watches_left_changes_are_looked_for_at_intervals_with_a_notice() {
    let tree = Tree::new();
    tree.write("d/a", "1");
    let source = tree.source(|config| config.poll_interval = Duration::from_millis(30));
    source.inject_watch_limit(3);
    let run = Running::start(source, Ledger::default());
    run.until_caught_up().await;
    assert_eq!(run.ask(|ledger| ledger.notices.len()), 0);
    tree.write("e/f/b", "1");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    tree.write("e/f/b", "2");
    tree.write("g/c", "1");
    let truth = tree.truth();
    run.until_pages(&truth).await;
    let notices = run.stop().await.notices;
    assert!(
        matches!(&notices[..], [Notice::FellBack { reason, .. }] if reason.contains("max_user_watches")),
        "{notices:?}"
    );
}

#[tokio::test]
async fn without_watches_left_a_source_that_must_have_them_fails_and_says_which_limit() {
    let tree = Tree::new();
    let source = tree.source(|config| config.watch = WatchMode::Notify);
    source.inject_watch_limit(0);
    let run = Running::start(source, Ledger::default());
    run.until("an error", |ledger| ledger.ended.is_some()).await;
    let error = run.ask(|ledger| ledger.ended.clone()).unwrap().unwrap_err();
    assert!(error.contains("fs.inotify.max_user_watches"), "{error}");
}

// --- what is no page -----------------------------------------------------------------------------

#[tokio::test]
async fn links_are_neither_pages_nor_followed() {
    let tree = Tree::new();
    tree.write("d/a", "1");
    symlink(".", tree.at("loop")).unwrap();
    symlink("d", tree.at("d2")).unwrap();
    symlink("/etc/passwd", tree.at("out")).unwrap();
    let run = tree.run(|_| {}).await;
    symlink("d/a", tree.at("late")).unwrap();
    tree.write("marker", "x");
    run.until("marker", |ledger| ledger.pages().contains_key("marker"))
        .await;
    assert_eq!(
        run.stop().await.pages().into_keys().collect::<Vec<_>>(),
        ["d/a", "marker"]
    );
}

#[tokio::test]
async fn a_file_replaced_by_a_link_is_invalidated() {
    let told = told(
        |_| {},
        |tree| {
            fs::remove_file(tree.at("a")).unwrap();
            symlink("/etc/passwd", tree.at("a")).unwrap();
        },
    )
    .await;
    assert_eq!(told, kinds(&[("a", KindName::Invalidated)]));
}

#[tokio::test]
async fn a_name_that_is_not_utf8_is_told_escaped_and_reported() {
    let tree = Tree::new();
    let run = tree.run(|_| {}).await;
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9\n.md");
    fs::write(tree.root().join(name), "x").unwrap();
    run.until("the page", |ledger| {
        ledger.pages().contains_key("caf\\xe9\\x0a.md")
    })
    .await;
    fs::write(tree.root().join(name), "y").unwrap();
    let truth = tree.truth();
    run.until_pages(&truth).await;
    let problem = Notice::Page {
        path: "caf\\xe9\\x0a.md".into(),
        problem: PageProblem::EscapedName,
    };
    assert_eq!(run.stop().await.notices, [problem]);
}

#[tokio::test]
async fn a_name_that_holds_a_declared_secret_is_no_page_and_is_told_without_it() {
    let tree = Tree::new();
    tree.write("of-canary-77.md", "x");
    let secrets = Redactor::default();
    secrets.add(&Secret::new("canary-77")).unwrap();
    let source = FilesSource::new(tree.config(), SystemClock::shared())
        .unwrap()
        .without_names_of(secrets);
    let run = Running::start(Arc::new(source), Ledger::default());
    run.until_caught_up().await;
    tree.write("a-canary-77/b.md", "y");
    tree.write("c.md", "z");
    run.until("both reported", |ledger| {
        ledger.pages().contains_key("c.md") && ledger.notices.len() >= 2
    })
    .await;
    let ledger = run.stop().await;
    assert_eq!(ledger.pages().len(), 1);
    assert_eq!(
        ledger.notices[0],
        Notice::Page {
            path: "of-[redacted].md".into(),
            problem: PageProblem::SecretName,
        }
    );
    let told = format!("{:?} {:?}", ledger.notices, ledger.changes);
    assert!(!told.contains("canary"), "{told}");
}

#[tokio::test]
async fn a_file_over_the_bound_is_reported_and_one_that_grows_over_it_invalidated() {
    let tree = Tree::new();
    tree.write("big", &"x".repeat(101));
    tree.write("a", "1");
    let run = tree.run(|config| config.max_file_bytes = 100).await;
    tree.write("a", &"x".repeat(200));
    run.until("no page", |ledger| ledger.pages().is_empty())
        .await;
    tree.write("a", "small again");
    run.until("the page", |ledger| ledger.pages().len() == 1)
        .await;
    let ledger = run.stop().await;
    assert_eq!(ledger.notices.len(), 2, "{:?}", ledger.notices);
}

#[tokio::test]
async fn pages_over_the_bound_are_refused_with_a_notice_until_there_is_room() {
    let tree = Tree::new();
    for n in 0..5 {
        tree.write(&format!("{n}"), "x");
    }
    let run = tree
        .run(|config| {
            config.max_pages = 3;
            config.rescan_interval = Some(Duration::from_millis(50));
        })
        .await;
    assert_eq!(
        run.ask(|ledger| (ledger.pages().len(), ledger.notices.len())),
        (3, 1)
    );
    fs::remove_file(tree.at("0")).unwrap();
    fs::remove_file(tree.at("1")).unwrap();
    run.until("the refused pages", |ledger| {
        ledger.pages().keys().eq(["2", "3", "4"])
    })
    .await;
    run.stop().await;
}

#[tokio::test]
async fn excluded_trees_are_not_pages_and_newly_excluded_pages_are_invalidated() {
    let tree = Tree::new();
    for path in [
        "a.md",
        "b.txt",
        ".git/HEAD",
        "target/x.md",
        "sub/node_modules/p/i.md",
    ] {
        tree.write(path, "1");
    }
    let run = tree
        .run(|config| config.include = vec!["*.md".into()])
        .await;
    assert_eq!(
        run.ask(|ledger| ledger.pages().into_keys().collect::<Vec<_>>()),
        ["a.md"]
    );
    let ledger = run.stop().await;
    let source = tree.source(|config| config.exclude = vec!["a.*".into()]);
    let run = Running::start(source, ledger);
    run.until_caught_up().await;
    assert_eq!(
        run.stop().await.told(1),
        kinds(&[("a.md", KindName::Invalidated), ("b.txt", KindName::Added)])
    );
}

#[tokio::test]
async fn a_baseline_is_remembered_but_not_told() {
    let tree = Tree::new();
    tree.write("a", "1");
    let source = tree.source(|config| config.initial = Initial::Baseline);
    let run = Running::start(source.clone(), Ledger::default());
    run.until_caught_up().await;
    tree.write("a", "2");
    run.until("the change", |ledger| ledger.changes.len() == 1)
        .await;
    let ledger = run.stop().await;
    assert_eq!(ledger.told(0), kinds(&[("a", KindName::Replaced)]));
    tree.write("b", "1");
    let run = Running::start(source, ledger);
    run.until_caught_up().await;
    assert_eq!(run.stop().await.told(1), kinds(&[("b", KindName::Added)]));
}

#[tokio::test]
async fn files_that_come_and_go_while_they_are_looked_at_are_no_error() {
    let tree = Tree::new();
    let run = tree
        .run(|config| {
            config.settle = SettleConfig {
                rest: Duration::ZERO,
                max_wait: Duration::ZERO,
            }
        })
        .await;
    for round in 0..300 {
        let directory = format!("d{}", round % 3);
        tree.write(&format!("{directory}/x"), &round.to_string());
        tree.write(&format!("{directory}/y/z"), &round.to_string());
        if round % 2 == 0 {
            fs::remove_dir_all(tree.at(&directory)).unwrap();
        }
    }
    let truth = tree.truth();
    run.until_pages(&truth).await;
    let ledger = run.stop().await;
    assert_eq!(ledger.notices, []);
}

#[tokio::test]
async fn a_file_written_to_without_end_is_seen_within_its_longest_wait() {
    let tree = Tree::new();
    let run = tree
        .run(|config| {
            config.settle = SettleConfig {
                rest: Duration::from_millis(20),
                max_wait: Duration::from_millis(100),
            };
        })
        .await;
    let path = tree.at("log");
    let mut content = String::new();
    run.until("three looks", |ledger| {
        content.push('x');
        fs::write(&path, &content).unwrap();
        ledger.changes.len() >= 3
    })
    .await;
    let truth = tree.truth();
    run.until_pages(&truth).await;
    run.stop().await;
}
