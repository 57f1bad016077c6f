//! The stable error codes of the command line, `V80xx`. Every error that a user meets has one.
//!
//! A code never changes its meaning and is never reused. Manifests have their own (`E0xxx`, `W0xxx`), the HTTP API
//! (`V60xx`, `V61xx`) and the node (`V70xx`) too; `volary explain` knows them all.

use crate::exit::Exit;

/// One kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// What is printed, like `V8003`.
    pub id: &'static str,
    /// Its name in a few words.
    pub title: &'static str,
    /// How it comes about.
    pub cause: &'static str,
    /// What to do about it.
    pub hint: &'static str,
    /// The exit code that goes with it.
    pub exit: Exit,
}

macro_rules! codes {
    ($($name:ident = $id:literal, $exit:ident, $title:literal, $cause:literal, $hint:literal;)*) => {
        $(
            #[doc = concat!("`", $id, "`: ", $title, ".")]
            pub const $name: Code =
                Code { id: $id, title: $title, cause: $cause, hint: $hint, exit: Exit::$exit };
        )*
        /// Every code of the command line, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    USAGE = "V8001", Usage, "wrong command line",
        "An argument is missing, unknown or not of the kind that the command takes.",
        "see `volary help` or `volary COMMAND --help`";
    STATE = "V8002", Failure, "state folder cannot be used",
        "The folder with the fleet's state cannot be made, read or written.",
        "look at its permissions, or choose another one with --state DIR or VOLARY_STATE";
    NOT_RUNNING = "V8003", Unavailable, "no node runs here",
        "Commands that ask a running node find it by its state folder, and no node runs on that one.",
        "start it with `volary up`, or name the state folder of the one you mean with --state DIR or -C FLEET_DIR";
    NO_ANSWER = "V8004", Unavailable, "the node does not answer",
        "The node's ops address was known, but the connection failed or broke off.",
        "`volary health` tells how the node is; its log is node.log in the folder logs of its state";
    BUSY = "V8005", Failure, "the state folder belongs to another fleet or version",
        "A node runs on this state folder already, and what you want to start is not what it runs.",
        "stop it with `volary down`, or give this fleet a state folder of its own with --state DIR";
    EXISTS = "V8006", Failure, "something is there already",
        "`volary init` never writes over a file.",
        "name an empty or new folder";
    MANIFEST = "V8007", BadData, "the fleet's manifests have errors",
        "The manifests were read as a whole; every problem found is listed with its own code, file, line and column.",
        "correct them and run `volary validate` again; `volary explain CODE` says more about each";
    PORT = "V8008", Unavailable, "a port is already in use",
        "Another process listens on a port that the fleet needs.",
        "stop that process, or change the port";
    START = "V8009", Failure, "the node cannot start",
        "A part of the node could not be brought up; the causes name which.",
        "`volary doctor` shows what this machine offers";
    NOT_READY = "V8010", Deadline, "not ready in time",
        "Some replica or source was not ready when the time was over. The fleet was stopped again.",
        "what its replicas said is in the folder logs of its state; give it longer with --wait-timeout";
    NODE_FAILED = "V8011", Failure, "the node stopped by itself",
        "A part that the node cannot do without failed, so it drained and ended.",
        "its log says which and why; nothing that was accepted is lost: start it again when the cause is gone";
    UNCLEAN = "V8012", Failure, "not everything could be stopped in time",
        "The deadline for the drain passed, and what was left was ended by force.",
        "what was not acknowledged comes again at the next start";
    NOT_LINKED = "V8013", Usage, "not inside an agent",
        "`volary link` speaks for an agent that a node started: the node puts VOLARY_LINK and VOLARY_TOKEN_FILE into its environment.",
        "run it from an agent's program";
    DOCUMENT = "V8014", BadData, "not the document it should be",
        "A JSON document was given, as argument, file or standard input, that cannot be read.",
        "quote JSON for the shell, like '{\"n\":1}'; use @FILE for a file and - for standard input";
    READ = "V8015", Failure, "a file cannot be read",
        "A file that was named cannot be opened or read.",
        "look at its path and permissions";
    NO_AGENT = "V8016", Failure, "no such agent or replica",
        "The fleet has nothing of that name.",
        "`volary ps` lists what it has";
    NO_OUTCOME = "V8017", Deadline, "no outcome in time",
        "The message was accepted, and whoever received it had not finished when the time was over. It goes on.",
        "follow it by its trace: `volary events --trace TRACE`";
    NOT_SENT = "V8018", Failure, "the message was not accepted",
        "Nobody takes such messages, or a bound, a rule or a hook kept it out. It was not delivered to anybody.",
        "`volary ps` lists the agents, `volary inspect AGENT` the topics of one, `volary pools list` the pools, `volary identity list` the agents of peers";
    WORK_FAILED = "V8019", Failure, "the work failed",
        "The message was delivered, and its receiver used up its attempts or the message was dropped.",
        "`volary parked list` shows what got stuck, `volary logs AGENT` why";
    NO_CODE = "V8020", Failure, "unknown error code",
        "`volary explain` was asked for a code that no part of this build uses.",
        "codes look like V8003, E0101 or W0501; `volary explain --list` shows all";
    DAMAGED = "V8021", BadData, "the journal is damaged",
        "An entry was changed, is missing, or the journal ends before its signed head says.",
        "keep a copy of the state folder; `volary journal export` still reads what comes before the first bad entry";
    DETACHED = "V8022", Failure, "the node ended before it was ready",
        "The process that `volary up -d` left in the background ended at once.",
        "its own error stands above; the whole log is node.log in the folder logs of the state";
    SLOW_DOWN = "V8023", Deadline, "the node has not gone in time",
        "It was asked to stop and is still there.",
        "agents may need longer: look at `volary ps`, or ask again with a longer --timeout";
    SYSTEM = "V8024", Failure, "the system refuses",
        "A system call failed that hardly ever does.",
        "`volary doctor` shows the limits of this machine";
    OUTPUT = "V8025", Failure, "the output cannot be written",
        "Standard output or a file could not be written.",
        "look at the disk's free space and at where the output goes";
    UNHEALTHY = "V8026", Failure, "not healthy or not ready",
        "The node answers, and one of its checks fails.",
        "the checks that fail say why; `volary ps` shows the replicas";
    VERSION = "V8027", Unavailable, "the node speaks another version",
        "The node's answer cannot be understood: it was probably started by another version of this program.",
        "stop it with the version that started it, and start it with this one";
    NO_JOURNAL = "V8028", Unavailable, "no journal here",
        "The state folder holds no journal: no fleet has run on it, or its store is `memory`.",
        "name the state folder of the fleet you mean with --state DIR or -C FLEET_DIR";
    REPLAY_STOPPED = "V8040", Failure, "the replay stopped",
        "A recorded message could not be put into the inbox. What was fed before stays there.",
        "mend what it says and go on where it stopped, with --from-seq";
    DIVERGED = "V8041", Failure, "the agent does not do what it did",
        "Run on a recorded input, the agent asked for something else than the journal says it asked for then.",
        "if its program, the files it reads or what it asks the network changed, that is why; what it is told as VOLARY_NOW and VOLARY_SEED is as recorded";
    ARCHIVE = "V8042", BadData, "the archive is refused",
        "An archive of a journal was edited, cut off, or is of a format that this version does not know.",
        "get it again from where it was exported";
    FOREIGN_KEY = "V8043", BadData, "the archive is signed by another key",
        "Only archives of the node's own key are taken, unless a key is named.",
        "if you know the key to be good, accept it with --key HEX";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_have_words() {
        assert!(ALL.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(
            ALL.iter()
                .all(|code| ![code.title, code.cause, code.hint].contains(&""))
        );
        assert!(ALL.iter().all(|code| code.exit != Exit::Ok));
    }
}
