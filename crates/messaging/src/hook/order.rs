//! The order of the shipped hooks, and what is wrong with another. Pure.

/// The order to use: cheap checks first, then the limiter, before anything is spent on a message; then what changes it;
/// then what judges and records it as it goes on.
pub const DEFAULT_ORDER: [&str; 5] = ["validate", "rate-limit", "enrich", "policy", "record"];

/// What each place is for, for the warning.
const WHY: [(&str, &str, &str); 6] = [
    (
        "validate",
        "rate-limit",
        "malformed messages would use up tokens",
    ),
    ("validate", "enrich", "malformed messages would be enriched"),
    (
        "rate-limit",
        "enrich",
        "work would be spent on messages that are over the limit",
    ),
    (
        "rate-limit",
        "policy",
        "policy would be asked about messages that are over the limit",
    ),
    (
        "enrich",
        "policy",
        "policy would judge another message than the one that goes on",
    ),
    (
        "enrich",
        "record",
        "the record would be of another message than the one that goes on",
    ),
];

/// The warning for hooks in this order, if it is not the default one. Names are those of the shipped hooks
/// (`rate-limit`, `rate_limit` and `rateLimit` are the same); others may stand anywhere. A hook that is named twice is a
/// problem too: it would act twice.
pub fn order_problem(names: &[&str]) -> Option<String> {
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let names: Vec<(String, &str)> = names.iter().map(|name| (plain(name), *name)).collect();
    let place = |wanted: &str| {
        let wanted = plain(wanted);
        names.iter().position(|(name, _)| *name == wanted)
    };
    let shipped = |name: &str| DEFAULT_ORDER.iter().any(|known| plain(known) == name);
    let twice = names.iter().enumerate().find(|(index, (name, _))| {
        shipped(name) && names[..*index].iter().any(|(earlier, _)| earlier == name)
    });
    if let Some((_, (_, name))) = twice {
        return Some(format!("hook `{name}` is named twice and would act twice"));
    }
    WHY.iter().find_map(|(first, second, why)| {
        let (before, after) = (place(first)?, place(second)?);
        (before > after).then(|| {
            let order = DEFAULT_ORDER.join(", ");
            format!(
                "hook `{}` comes before `{}`: {why}; the usual order is {order}",
                names[after].1, names[before].1
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_order_and_any_part_of_it_are_fine() {
        assert_eq!(order_problem(&DEFAULT_ORDER), None);
        assert_eq!(order_problem(&[]), None);
        assert_eq!(
            order_problem(&["own", "rateLimit", "other", "policy"]),
            None
        );
        let recorded_first = ["validate", "rate_limit", "enrich", "record", "policy"];
        assert_eq!(order_problem(&recorded_first), None, "both may be wanted");
    }

    #[test]
    fn another_order_is_named_with_its_reason() {
        for (order, first, second) in [
            (vec!["rate-limit", "validate"], "rate-limit", "validate"),
            (vec!["policy", "own", "enrich"], "policy", "enrich"),
            (vec!["record", "enrich"], "record", "enrich"),
            (
                vec!["validate", "policy", "rateLimit"],
                "policy",
                "rateLimit",
            ),
        ] {
            let problem = order_problem(&order).expect("it is another order");
            let start = format!("hook `{first}` comes before `{second}`: ");
            assert!(problem.starts_with(&start), "{problem}");
        }
        assert!(order_problem(&["policy", "policy"]).is_some());
        assert_eq!(order_problem(&["own", "own"]), None);
    }
}
