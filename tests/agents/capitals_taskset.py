"""A taskset of verifiers for tests; imported only where that is installed."""

import verifiers.v1 as vf

CAPITALS = {
    "Spain": "Madrid",
    "France": "Paris",
    "Italy": "Rome",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
}


class Data(vf.TaskData):
    answer: str


class Task(vf.Task[Data]):
    @vf.reward(weight=0.75)
    async def right(self, trace) -> float:
        if self.data.answer == "Lima":
            raise OSError("no service")
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.25)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 20)


class Capitals(vf.Taskset[Task, vf.TasksetConfig]):
    def load(self):
        for country, capital in CAPITALS.items():
            prompt = f"What is the capital of {country}?"
            yield Task(Data(prompt=prompt, answer=capital), self.config.task)


__all__ = ["Capitals"]
