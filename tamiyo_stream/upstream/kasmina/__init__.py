"""The Kasmina seed host: grafts small modules into a model in training (design §13, ``domain.md`` §2.2).

::

    host = SeedHost.attach(
        model,
        optimizer,
        [SeedSite("seed-1", "blocks.1"), SeedSite("seed-2", "blocks.3", specialization="attention")],
        {"BP002": lambda width: nn.Linear(width, width)},
        run_id="my-run",
        redis_url="redis://127.0.0.1:6379/0",
    )
    for step, batch in enumerate(data):
        loss = train_on(batch)  # forward, backward, optimizer.step()
        host.step(step, loss)
    host.close()
"""
