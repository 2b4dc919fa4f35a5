//! Curves on logarithmic scales, as SVG that is at home on light and dark pages.

use std::fmt::Write;

pub struct Panel {
    pub title: &'static str,
    pub ours: Vec<(f64, f64)>,
    pub floor: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 34.0;
const PLOT: (f64, f64) = (WIDTH - LEFT - 90.0, HEIGHT - TOP - 36.0);

/// One panel below the other.
pub fn draw(panels: &[Panel]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" width=\"{WIDTH}\" role=\"img\" \
         aria-label=\"CPU seconds of the server per million deliveries\" font-family=\"sans-serif\" font-size=\"12\" \
         fill=\"#888\">\n",
        HEIGHT * panels.len() as f64
    );
    for (i, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * i as f64);
        panel.draw(&mut out);
        out.push_str("</g>\n");
    }
    out + "</svg>\n"
}

/// From the power of ten below to the one above.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (i32, i32) {
    let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
    let most = values.fold(0.0, f64::max).log10().ceil() as i32;
    (least, most.max(least + 1))
}

impl Panel {
    fn draw(&self, out: &mut String) {
        let all = self.ours.iter().chain(&self.floor);
        let (xs, ys) = (decades(all.clone().map(|p| p.0)), decades(all.map(|p| p.1)));
        let scale = |value: f64, (from, to): (i32, i32)| (value.log10() - f64::from(from)) / f64::from(to - from);
        let x = |value| LEFT + PLOT.0 * scale(value, xs);
        let y = |value| TOP + PLOT.1 * (1.0 - scale(value, ys));
        let _ = writeln!(out, "<text x=\"0\" y=\"16\" font-weight=\"bold\">{}</text>", self.title);
        let _ = writeln!(out, "<text x=\"0\" y=\"29\" font-size=\"10\">CPU s per million deliveries</text>");
        for power in ys.0..=ys.1 {
            let (value, at) = (10f64.powi(power), y(10f64.powi(power)));
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}h{}\" stroke=\"#888\" stroke-opacity=\".3\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                PLOT.0,
                LEFT - 6.0,
                at + 4.0
            );
        }
        for power in xs.0..=xs.1 {
            let (value, at) = (10f64.powi(power), x(10f64.powi(power)));
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {TOP}v{}\" stroke=\"#888\" stroke-opacity=\".3\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
                PLOT.1,
                HEIGHT - 20.0
            );
        }
        for (name, points, colour) in [("this crate", &self.ours, "#2a7fd4"), ("the floor", &self.floor, "#d4722a")] {
            let path: Vec<_> = points.iter().map(|&(px, py)| format!("{:.1} {:.1}", x(px), y(py))).collect();
            let _ =
                writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join("L"));
            for (at, (_, value)) in path.iter().zip(points.iter()) {
                let (cx, cy) = at.split_once(' ').unwrap();
                let _ = writeln!(
                    out,
                    "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{colour}\"><title>{value:.3}</title></circle>"
                );
            }
            if let Some(&(px, py)) = points.last() {
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                    x(px) + 8.0,
                    y(py) + 4.0
                );
            }
        }
    }
}
