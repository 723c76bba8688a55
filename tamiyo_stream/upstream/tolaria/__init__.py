"""The Tolaria probe: connects any PyTorch training loop to Tamiyo (design §13).

::

    probe = TolariaProbe.attach(model, optimizer, run_id="my-run", redis_url="redis://127.0.0.1:6379/0")
    for batch in data:
        loss = train_on(batch)  # forward, backward, optimizer.step()
        probe.step(loss=loss, samples=len(batch))
    probe.close()
"""
