"""What a question must be before an agent works on it."""

IMAGE_FIELDS = ("image", "images")


def refuse_images(question):
    """Raises ValueError if a question is not text alone.

    Args:
      question: dict with "id" and "question".
    """
    held = [field for field in IMAGE_FIELDS if question.get(field)]
    if not isinstance(question["question"], str):
        held.append("question")
    if held:
        raise ValueError(
            f"Question {question['id']!r} is more than text (field {held[0]!r}). Images are not "
            "supported: the models read text only. Leave it out, or put what the image shows into "
            "words."
        )
