"""`kssm simulate`: oscillators without a language model, measured against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODELS = "mean-field, sakaguchi, triadic, noisy, inertial or sphere"


def simulate(
    model: Annotated[str, typer.Option(help=f"What to simulate: {MODELS}.")] = "mean-field",
    dimension: Annotated[
        int | None,
        typer.Option(help="2: phases; 3: unit vectors on a sphere, the model sphere."),
    ] = None,
    K: Annotated[
        str | None, typer.Option("--K", help="Coupling, or a sweep FIRST:LAST:COUNT such as 0:4:17.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of oscillators.")] = None,
    distribution: Annotated[
        str | None, typer.Option(help="Of the frequencies: lorentzian, gaussian, uniform or identical.")
    ] = None,
    width: Annotated[float | None, typer.Option(help="Of that distribution: gamma, sigma or Delta.")] = None,
    lag: Annotated[float | None, typer.Option(help="Phase lag in radians (sakaguchi).")] = None,
    noise: Annotated[float | None, typer.Option(help="Diffusion D of the phases (noisy).")] = None,
    K2: Annotated[float | None, typer.Option("--K2", help="Triadic coupling (triadic).")] = None,
    mass: Annotated[float | None, typer.Option(help="Inertia (inertial).")] = None,
    time: Annotated[float | None, typer.Option(help="How long, in units of 1 / frequency.")] = None,
    dt: Annotated[float | None, typer.Option(help="Time step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial phases and noise.")] = None,
    method: Annotated[str | None, typer.Option(help="euler, heun, rk4, kick or strang.")] = None,
    out: Annotated[Path, typer.Option(help="Where the picture goes (PNG).")] = Path("simulation.png"),
) -> None:
    """Simulate coupled oscillators, compare R with theory, and draw it."""
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.oscillators.simulate import model_of, parse_couplings, prepare
    from kssm_mlx.oscillators.simulate import simulate as run
    from kssm_mlx.reports.simulation import check_target, describe, draw

    options = {"n": n, "distribution": distribution, "width": width, "lag": lag, "noise": noise, "K2": K2}
    options |= {"mass": mass, "time": time, "dt": dt, "seed": seed, "method": method}
    setup = prepare(model_of(model, dimension), K=None if K is None else parse_couplings(K), **options)
    check_target(out)
    simulation = run(setup)
    draw(simulation, out)
    header = ("K", "start", "R measured", "± in time", "R theory", "deviation")
    screen = console()
    show(screen, table(header, [row.cells() for row in simulation.rows], describe(setup)))
    for name, value in simulation.thresholds.items():
        screen.print(f"{name} = {value:.4g}", markup=False)
    screen.print(f"picture: {out}", markup=False, soft_wrap=True)
