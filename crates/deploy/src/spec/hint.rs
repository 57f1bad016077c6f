//! "Did you mean…?" Pure.

/// The candidate that `word` is most likely a slip of: the same letters in another case or with other separators, or a
/// few letters off.
pub(crate) fn near<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = fold(word);
    let allowed = match folded.len() {
        0..=2 => 0,
        3..=4 => 1,
        5..=8 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&folded, &fold(candidate)),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> String {
    word.chars()
        .filter(|c| c.is_alphanumeric())
        .take(64)
        .flat_map(char::to_lowercase)
        .collect()
}

/// `a, b and c`.
pub(crate) fn listing(words: &[&str], last: &str) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let keys = ["healthCheck", "environment", "ports", "runAsUser"];
        let check = |word, expected| assert_eq!(near(word, keys), expected, "{word}");
        check("healthcheck", Some("healthCheck"));
        check("health_check", Some("healthCheck"));
        check("helthChek", Some("healthCheck"));
        check("enviroment", Some("environment"));
        check("port", Some("ports"));
        check("run-as-user", Some("runAsUser"));
        check("volumes", None);
        check("x", None);
    }
}
