"""One arm in a process of its own: answers each line of JSON with one. `throughput.py` starts it.

python benchmarks/arm_server.py purejaxppo '["CartPole-v1", 64, 128, 1, []]'

It first says that it is ready. {"updates": 4} compiles a block of that many updates and calls it once; {"calls": 3}
times so many calls of it.
"""

import json
import os
import sys

from benchmarks.lib.work import ARMS, Block, Work


def main() -> None:
    name, work = sys.argv[1], Work(*json.loads(sys.argv[2]))
    arm = ARMS[name](work)

    import jax

    jax.block_until_ready(arm.state)
    settled = {"devices": len(jax.devices()), "NPROC": os.environ.get("NPROC")}
    print(json.dumps(settled), flush=True)
    block = None
    for line in sys.stdin:
        request = json.loads(line)
        if "updates" in request:
            from purejaxppo.memory import program_bytes

            block = Block(arm, request["updates"])
            answer = {"compile_s": block.compile_s, "first_call_s": block.first_call_s}
            print(json.dumps({**answer, "program_bytes": program_bytes(block.program)}), flush=True)
        elif block:
            print(json.dumps({"seconds": block.time(request["calls"])}), flush=True)


if __name__ == "__main__":
    main()
