//! A generated git repository whose every commit is known beforehand: the same arguments give the same history.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How many files share a folder.
const PER_FOLDER: usize = 50;

/// A repository made by [`git_repo`].
#[derive(Debug)]
pub struct GitRepo {
    root: PathBuf,
    commits: Vec<String>,
}

/// One path that differs between two commits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Only the later commit has it.
    Added(String),
    /// Both have it, with other content.
    Changed(String),
    /// Only the earlier commit has it.
    Removed(String),
}

/// Makes a repository of about `files` files and exactly `commits` commits in an existing folder. Each commit after the
/// first changes a tenth of the files, removes one in forty and adds as many new ones. The last commit is checked out.
#[must_use]
pub fn git_repo(root: &Path, files: usize, commits: usize) -> GitRepo {
    let mut repo = GitRepo {
        root: root.to_owned(),
        commits: Vec::new(),
    };
    repo.git(&["init", "--quiet", "--initial-branch=main"]);
    repo.git(&["config", "gc.auto", "0"]);
    let mut present: Vec<usize> = (0..files).collect();
    let mut next = files;
    for commit in 0..commits {
        if commit == 0 {
            present.iter().for_each(|file| repo.write(*file, commit));
        } else {
            next = repo.change(&mut present, next, commit);
        }
        repo.git(&["add", "--all"]);
        repo.git(&[
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            &format!("Commit {commit}"),
        ]);
        let id = repo.git(&["rev-parse", "HEAD"]);
        repo.commits.push(id.trim().to_owned());
    }
    repo
}

impl GitRepo {
    /// The working tree.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ids of the commits, oldest first.
    #[must_use]
    pub fn commits(&self) -> &[String] {
        &self.commits
    }

    /// Checks out one commit by its number, without a branch.
    pub fn checkout(&self, commit: usize) {
        self.git(&["checkout", "--quiet", "--detach", &self.commits[commit]]);
    }

    /// Removes every file of the last checkout from the working tree, without a commit; a checkout brings them back.
    pub fn empty(&self) {
        let tree = self.git(&["mktree"]);
        let message = ["commit-tree", tree.trim(), "-m", "Nothing"];
        let nothing = self.git(&message);
        self.git(&["checkout", "--quiet", "--detach", nothing.trim()]);
    }

    /// What differs from one commit to another, ordered. A rename is a removal and an addition.
    #[must_use]
    pub fn difference(&self, from: usize, to: usize) -> Vec<Difference> {
        let (from, to) = (&self.commits[from], &self.commits[to]);
        let listing = self.git(&["diff", "--name-status", "--no-renames", from, to]);
        let mut differences: Vec<Difference> = listing
            .lines()
            .map(|line| match line.split_once('\t') {
                Some(("A", path)) => Difference::Added(path.to_owned()),
                Some(("M", path)) => Difference::Changed(path.to_owned()),
                Some(("D", path)) => Difference::Removed(path.to_owned()),
                _ => panic!("git says {line:?}"),
            })
            .collect();
        differences.sort();
        differences
    }

    /// Changes, removes and adds files; returns the next unused number.
    fn change(&self, present: &mut Vec<usize>, next: usize, commit: usize) -> usize {
        let (removed, kept): (Vec<usize>, Vec<usize>) = present
            .iter()
            .partition(|file| (*file + commit * 7).is_multiple_of(40));
        removed.iter().for_each(|file| {
            std::fs::remove_file(self.path(*file)).expect("it was written before")
        });
        kept.iter()
            .filter(|file| (*file + commit * 3).is_multiple_of(10))
            .for_each(|file| self.write(*file, commit));
        let added = next..next + removed.len();
        added.clone().for_each(|file| self.write(file, commit));
        *present = kept.into_iter().chain(added.clone()).collect();
        added.end
    }

    fn path(&self, file: usize) -> PathBuf {
        self.root
            .join(format!("part{:03}/note{file:05}.md", file / PER_FOLDER))
    }

    fn write(&self, file: usize, commit: usize) {
        let path = self.path(file);
        let folder = path.parent().expect("every file has a folder");
        std::fs::create_dir_all(folder).expect("the repository is writable");
        let mut text = format!("# Note {file}\n\nWritten in commit {commit}.\n");
        for line in 0..file % 17 {
            let _ = writeln!(text, "Line {line} of note {file}.");
        }
        std::fs::write(path, text).expect("the repository is writable");
    }

    /// Runs git, cut off from the settings of user and machine.
    fn git(&self, arguments: &[&str]) -> String {
        let when = format!("{} +0000", 1_700_000_000 + self.commits.len() * 60);
        let output = Command::new("git")
            .args([
                "-c",
                "user.name=Test",
                "-c",
                "user.email=test@localhost",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(arguments)
            .current_dir(&self.root)
            .stdin(std::process::Stdio::null())
            .env_remove("GIT_DIR")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_DATE", &when)
            .env("GIT_COMMITTER_DATE", &when)
            .output()
            .expect("git is installed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_arguments_give_the_same_history() {
        let (one, two) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let (one, two) = (git_repo(one.path(), 100, 3), git_repo(two.path(), 100, 3));
        assert_eq!(one.commits(), two.commits());
        assert_eq!(one.commits().len(), 3);
    }

    #[test]
    fn an_emptied_tree_comes_back_by_a_checkout() {
        let dir = tempfile::tempdir().expect("a folder");
        let repo = git_repo(dir.path(), 60, 1);
        repo.empty();
        assert!(!repo.path(7).exists());
        repo.checkout(0);
        assert!(repo.path(7).exists());
    }

    #[test]
    fn far_commits_differ_in_every_way() {
        let dir = tempfile::tempdir().expect("a folder");
        let repo = git_repo(dir.path(), 200, 4);
        let differences = repo.difference(0, 3);
        for wanted in ["Added", "Changed", "Removed"] {
            assert!(
                differences
                    .iter()
                    .any(|difference| format!("{difference:?}").starts_with(wanted)),
                "no {wanted}"
            );
        }
        repo.checkout(0);
        let Some(Difference::Removed(path)) = differences
            .iter()
            .find(|d| matches!(d, Difference::Removed(_)))
        else {
            panic!("nothing was removed");
        };
        assert!(
            repo.root().join(path).is_file(),
            "the first commit has what the last one lost"
        );
    }
}
