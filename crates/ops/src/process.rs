//! Figures of this process for `/metrics`: memory, descriptors, threads, CPU time, start. Read at each scrape from
//! the system, so that they cost nothing in between; what the system does not tell is left out.

use std::{fmt::Write as _, fs};

use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

use crate::negotiate::Exposition;

/// One figure: name without prefix, type, help, value.
type Figure = (&'static str, &'static str, &'static str, f64);

/// The figures as exposition text, to stand before the end of a whole exposition.
pub(crate) fn exposition(form: Exposition) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in figures() {
        let name = format!("{}_process_{name}", volary_kernel::metric::PREFIX);
        let sample = if kind == "counter" {
            format!("{name}_total")
        } else {
            name.clone()
        };
        let family = if form == Exposition::Text {
            &sample
        } else {
            &name
        };
        let _infallible = write!(
            text,
            "# HELP {family} {help}.\n# TYPE {family} {kind}\n{sample} {value}\n"
        );
    }
    text
}

fn figures() -> Vec<Figure> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<f64> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let open = fs::read_dir("/proc/self/fd")
        .map(|entries| entries.count().saturating_sub(1) as f64)
        .ok();
    let most = getrlimit(Resource::Nofile)
        .current
        .map(|limit| limit as f64);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    [
        (
            "cpu_seconds",
            "counter",
            "CPU time used, user and system, in seconds",
            Some(cpu),
        ),
        ("open_fds", "gauge", "Open file descriptors", open),
        (
            "max_fds",
            "gauge",
            "Most file descriptors that may be open",
            most,
        ),
        (
            "resident_memory_bytes",
            "gauge",
            "Resident memory in bytes",
            field("VmRSS").map(|kib| kib * 1024.0),
        ),
        (
            "virtual_memory_bytes",
            "gauge",
            "Virtual memory in bytes",
            field("VmSize").map(|kib| kib * 1024.0),
        ),
        ("threads", "gauge", "Threads", field("Threads")),
        (
            "start_time_seconds",
            "gauge",
            "Start of the process in seconds since 1970",
            start_time(),
        ),
    ]
    .into_iter()
    .filter_map(|(name, kind, help, value)| Some((name, kind, help, value?)))
    .collect()
}

/// Seconds since 1970 at which this process started: boot time plus field 22 of `/proc/self/stat`.
fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot + ticks / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use volary_kernel::{Clock, SystemClock};

    #[test]
    fn every_figure_is_there_and_plausible() {
        let found = figures();
        let value = |name: &str| {
            found
                .iter()
                .find(|figure| figure.0 == name)
                .map(|figure| figure.3)
                .unwrap()
        };
        assert_eq!(found.len(), 7);
        assert!(value("resident_memory_bytes") > 100_000.0);
        assert!(value("open_fds") >= 3.0 && value("open_fds") < value("max_fds"));
        #[expect(clippy::cast_precision_loss, reason = "a test on seconds")]
        let now = SystemClock.wall().as_micros() as f64 / 1e6;
        let age = now - value("start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
    }

    #[test]
    fn counters_are_named_as_each_form_wants() {
        let text = exposition(Exposition::Text);
        assert!(text.contains(
            "# TYPE volary_process_cpu_seconds_total counter\nvolary_process_cpu_seconds_total "
        ));
        let open = exposition(Exposition::OpenMetrics);
        assert!(open.contains(
            "# TYPE volary_process_cpu_seconds counter\nvolary_process_cpu_seconds_total "
        ));
    }
}
