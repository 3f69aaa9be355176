// The kernel of losses of rows: the phases of a launch, and the places of results.

DEVICE void write_gradients(const View& view, const Constants* constants, bool kept) {
    const Job& job = view.job;
    bool wants_s = job.table.has(GRADIENT_S), wants_t = job.table.has(GRADIENT_T);
    TYPE_S* of_s = (TYPE_S*)job.table.cells[GRADIENT_S][ADDRESS];
    TYPE_T* of_t = (TYPE_T*)job.table.cells[GRADIENT_T][ADDRESS];
    if (!kept) {
        for_each_class(view, [&](Real, Real, long long at) {
            if (wants_s) write(of_s + at, Real(0));
            if (wants_t) write(of_t + at, Real(0));
        });
        return;
    }
    Wide factor = job.factors[view.row * job.factor_step] / view.heat.temperature;
    if constexpr (DIVERGENCE != KL) {
        write_summed_gradients<Divergence<DIVERGENCE>>(view, constants, factor, of_s, of_t);
    } else {
        Constants c = constants_of(*view.known(0), view.heat);
        Real scale = Real(factor);
        for_each_class(view, [&](Real s, Real t, long long at) {
            if (wants_s) write(of_s + at, scale * excess(t, s, c, view.heat));
            if (wants_t) write(of_t + at, scale * slope(t, s, c, view.heat));
        });
    }
}

DEVICE Wide value_of(const View& view) {
    if constexpr (DIVERGENCE != KL) return summed_value(view);
    else return view.known(0)->kl;
}

DEVICE void run_row(const View& view) {
    const Job& job = view.job;
    bool kept = !job.keep || job.keep[view.row];
    int phases = int(job.phases);
    const Constants* constants = nullptr;
    if (kept) {
        if (phases & STATES) find_states(view);
        if (phases & FINISH) {
            view.sync();
            finish_row(view);
        }
        if constexpr (DIVERGENCE != KL) {
            using Now = Divergence<DIVERGENCE>;
            if (phases & (SUMS | GRADIENTS)) constants = shared_constants<Now>(view);
            if (phases & SUMS) add_sums<Now>(view, constants);
        }
    }
    if (phases & (VALUES | GRADIENTS)) view.sync();
    if ((phases & VALUES) && part() == 0 && view.leads())
        job.values[view.row] = kept ? value_of(view) : 0;
    if (phases & GRADIENTS) write_gradients(view, constants, kept);
}

KERNEL row_loss(const Job job) {
    int team = int(job.team), teams = warps_of_block() / team;
    long long slot = block() * teams + warp() / team;
    long long tiles = (job.classes + TILE - 1) / TILE;
    long long of_part = (tiles + job.parts - 1) / job.parts * TILE;
    long long first = part() * of_part, last = first + of_part;
    if (last > job.classes) last = job.classes;
    for (long long row = slot; row < job.rows; row += blocks() * teams) {
        Heat heat = heat_of(job.temperatures[row * job.temperature_step]);
        View view = {job, row, slot, heat, first, last, warp() % team, team};
        run_row(view);
        view.sync();
    }
}
