//! Kubernetes quantities: CPU in thousandths, memory in bytes. Pure.

/// Reads `2`, `0.5`, `.5`, `500m` as thousandths of a CPU.
///
/// # Errors
/// What is wrong with it, with a hint where one can be given.
pub(crate) fn parse_cpu(text: &str) -> Result<u64, (String, Option<String>)> {
    let fail = |what: &str| Err((format!("{what}, found `{text}`"), None));
    let (number, exponent) = match text.strip_suffix('m') {
        Some(number) => (number, 0),
        None => (text, 3),
    };
    match decimal(number, exponent) {
        Decimal::Value(0) => fail("CPU must be more than 0"),
        Decimal::Value(milli) if milli < 10 => fail("CPU must be at least 0.01 (`10m`)"),
        Decimal::Value(milli) => Ok(milli),
        Decimal::TooFine => fail("CPU is counted in thousandths, no finer"),
        Decimal::TooLarge => fail("CPU is too large"),
        Decimal::Malformed => {
            fail("CPU must be a number of CPUs like `2` or `0.5`, or of thousandths like `500m`")
        }
    }
}

/// Suffixes of memory, longest first, with what they multiply by.
const MEMORY_UNITS: [(&str, u64); 16] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Reads `512Mi`, `2Gi`, `2GB`, `1.5Gi`, `129e6`, `128974848` as bytes.
///
/// # Errors
/// What is wrong with it, with a hint where one can be given: `512m` is half a byte in Kubernetes and never meant.
pub(crate) fn parse_memory(text: &str) -> Result<u64, (String, Option<String>)> {
    let fail = |what: &str, hint: Option<String>| Err((format!("{what}, found `{text}`"), hint));
    let known = MEMORY_UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = known.unwrap_or((text, 1));
    let bytes = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => match exponent.parse::<u32>() {
            Ok(exponent) if exponent <= 18 => decimal(mantissa, exponent as usize),
            _ => Decimal::Malformed,
        },
        None => scaled(number, unit),
    };
    match bytes {
        Decimal::Value(0) => fail("memory must be more than 0", None),
        Decimal::Value(bytes) => Ok(bytes),
        Decimal::TooFine => fail("memory is counted in whole bytes", None),
        Decimal::TooLarge => fail("memory is too large", None),
        Decimal::Malformed => {
            let digits: String = text
                .chars()
                .take_while(|c| c.is_ascii_digit() || *c == '.')
                .collect();
            let rest = text[digits.len()..].trim().to_ascii_lowercase();
            let unit = match rest.as_str() {
                "m" | "mb" | "mib" | "mi" => "Mi",
                "g" | "gb" | "gib" | "gi" => "Gi",
                "k" | "kb" | "kib" | "ki" => "Ki",
                _ => "",
            };
            let hint = (!unit.is_empty() && !digits.is_empty())
                .then(|| format!("did you mean `{digits}{unit}`?"));
            fail(
                "memory must be bytes with a unit like `512Mi`, `2Gi` or `1GB`",
                hint,
            )
        }
    }
}

enum Decimal {
    Value(u64),
    TooFine,
    TooLarge,
    Malformed,
}

/// `number` times ten to the `exponent`, as a whole number.
fn decimal(number: &str, exponent: usize) -> Decimal {
    match 10u64.checked_pow(u32::try_from(exponent).unwrap_or(u32::MAX)) {
        Some(unit) => scaled(number, unit),
        None => Decimal::TooLarge,
    }
}

fn scaled(number: &str, unit: u64) -> Decimal {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole)
        || !digits(fraction)
        || (whole.is_empty() && fraction.is_empty())
        || number.ends_with('.')
    {
        return Decimal::Malformed;
    }
    let fraction = fraction.trim_end_matches('0');
    let (Ok(whole), Ok(part)) = (
        or_zero(whole).parse::<u64>(),
        or_zero(fraction).parse::<u64>(),
    ) else {
        return Decimal::TooLarge;
    };
    let Some(scale) = 10u128.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX)) else {
        return Decimal::TooFine;
    };
    let part = u128::from(part) * u128::from(unit);
    if !part.is_multiple_of(scale) {
        return Decimal::TooFine;
    }
    let total = u128::from(whole) * u128::from(unit) + part / scale;
    // Signed 64 bits is what Kubernetes and Docker take.
    i64::try_from(total).map_or(Decimal::TooLarge, |total| {
        Decimal::Value(total.unsigned_abs())
    })
}

fn or_zero(digits: &str) -> &str {
    if digits.is_empty() { "0" } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_in_cpus_and_thousandths() {
        for (text, milli) in [
            ("2", 2000),
            ("0.5", 500),
            (".5", 500),
            ("500m", 500),
            ("1500m", 1500),
            ("1.000", 1000),
        ] {
            assert_eq!(parse_cpu(text).ok(), Some(milli), "{text}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "0.1m",
            "2 ",
            "2c",
            "1e3",
            "0.001",
            "1.",
            "99999999999999999999",
        ] {
            assert!(parse_cpu(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_is_read_with_binary_and_decimal_units() {
        let cases = [
            ("512Mi", 536_870_912),
            ("2Gi", 2 << 30),
            ("2GB", 2_000_000_000),
            ("2G", 2_000_000_000),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("1.5Gi", 1_610_612_736),
            ("100k", 100_000),
            ("100Ki", 102_400),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_memory(text).ok(), Some(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "512m",
            "512mb",
            "1.5",
            "9999999Ti",
            "Mi",
            "1 Gi",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_memory("512m").unwrap_err().1.as_deref(),
            Some("did you mean `512Mi`?")
        );
    }
}
