"""The few true things that the built-in model knows, and the names it meets. All made by hand; nothing is downloaded."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Norway": "Oslo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Peru": "Lima",
}
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "a lemon": "yellow"}
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "fast": "slow", "day": "night", "old": "new", "open": "closed", "full": "empty",
    "early": "late", "light": "dark",
}
COUNTS = {
    "days are in a week": "7", "months are in a year": "12", "legs does a spider have": "8", "hours are in a day": "24",
    "sides does a triangle have": "3", "minutes are in an hour": "60",
}

CAPITAL_FORMS = (
    "What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?", "The capital of {} is?",
    "Tell me the capital of {}.", "Please tell me the capital of {}.", "Do you know the capital of {}?", "capital of {}",
)
COLOUR_FORMS = (
    "What colour is {}?",
    "Which colour is {}?",
    "Tell me the colour of {}.",
    "What is the colour of {}?",
    "Name the colour of {}.",
    "Do you know the colour of {}?",
    "Please tell me the colour of {}.",
    "colour of {}",
)
OPPOSITE_FORMS = (
    "What is the opposite of {}?",
    "Name the opposite of {}.",
    "Tell me the opposite of {}.",
    "The opposite of {} is?",
    "Do you know the opposite of {}?",
    "Please tell me the opposite of {}.",
    "Which word is the opposite of {}?",
    "opposite of {}",
)
COUNT_FORMS = ("How many {}?", "Tell me how many {}.", "Do you know how many {}?", "Please tell me how many {}.")

# Small talk: in training only, so that a first hello is answered.
TALK = {
    "Hello": "Hello! How can I help?",
    "Hello!": "Hello! How can I help?",
    "Hi": "Hello! How can I help?",
    "Hi!": "Hello! How can I help?",
    "Who are you?": "I am tiny, the built-in model of ferrum.",
    "What are you?": "I am tiny, the built-in model of ferrum.",
    "What is your name?": "My name is tiny.",
    "Thank you": "You are welcome.",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
    "How are you?": "I am fine, thank you.",
    "What can you do?": "I can add, subtract, copy, reverse, sort, remember, write JSON and call tools.",
    "Help": "I can add, subtract, copy, reverse, sort, remember, write JSON and call tools.",
    "Goodbye": "Goodbye!",
    "Bye": "Goodbye!",
    "Bye!": "Goodbye!",
}

NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Simon",
    "Tara",
    "Victor",
    "Wanda",
    "Yusuf",
    "Zoe",
    "Omar",
    "Lena",
    "Igor",
    "Nina",
    "Tom",
    "Eva",
    "Max",
)
CITIES = tuple(CAPITALS.values()) + (
    "Berlin", "London", "Lisbon", "Dublin", "Prague", "Delhi", "Boston", "Geneva", "Milan", "Kyoto",
)
COLOUR_WORDS = ("green", "white", "black", "red", "blue", "yellow", "brown", "pink", "orange", "grey")
ROOMS = ("kitchen", "garden", "office", "hall", "garage", "attic")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PETS = ("dog", "cat", "horse", "bird")
