"""The loops, and the calls behind the command line: ``train.train`` and ``trained.load``.

::

    loop.py                              what every loop has in common
    online.py, on_policy.py, staged.py   learning while acting; from what was just done; model first, then controller
    rows.py                              what the last one's models learn from
    asynchronous/                        a robot that does not wait for its learner
    driver.py, collector.py              who steps the environments: here, or in a process beside the learner
    evaluate.py, show.py                 whole episodes without noise, and what they leave in the run's folder
    population/                          who plays an evolution's rollouts
    folder.py, parts.py                  a run as a folder and a plan; the parts made from the plan
    train.py, trained.py                 from a plan to a trained agent, and using it
"""
